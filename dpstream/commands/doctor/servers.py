"""Checks of the servers of a deployment, and what its labelers state to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress

from dpstream.commands.doctor.finding import Finding
from dpstream.running.connection import is_folder, open_bus, open_store
from dpstream.shared.errors import DpstreamError, StoreError
from dpstream.shared.programs import Programs


def examine_store(root: str) -> Iterator[Finding]:
    """Whether the bucket answers, accepts the keys, and refuses to create an object twice."""
    if is_folder(root):
        return
    try:
        store = open_store(root)
    except DpstreamError as error:
        fix = "check DPSTREAM_STORE, DPSTREAM_STORE_ENDPOINT, _REGION and the keys"
        yield Finding("store", "missing", f"{root}: {error}", fix)
    else:
        yield Finding("store", "works", root)
        with suppress(StoreError):  # not all keys may read it
            yield from _workers(Programs.read(store))


def _workers(programs: Programs) -> Iterator[Finding]:
    for queue in sorted(programs.queues):
        yield Finding(f"workers of {queue}", "works", programs.words(queue))


def examine_broker(broker: str | None) -> Iterator[Finding]:
    if broker is None:
        return
    try:
        with closing(open_bus(broker)):
            yield Finding("broker", "works", "reachable; accepts the user")
    except DpstreamError as error:
        yield Finding(
            "broker", "missing", str(error), "check DPSTREAM_BROKER; dpstream access creates users"
        )
