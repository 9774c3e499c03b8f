"""`python -m benchmarks.services.crew ROLE`: one process of a benchmark, told of broker and store
by the environment as every service is. Its requests to the store are counted; at its end it prints
them."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.services.campaigns import CAPABILITY
from benchmarks.services.counted import CountedStore
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.labeler.__main__ import LABELER
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared import messages as m
from dpstream.shared.atoms.dataset import load_dataset
from dpstream.shared.atoms.frames import Batch, FrameLabel, encode_labelled
from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.connect import connect_bus, connect_store
from dpstream.shared.errors import Permanent
from dpstream.shared.logs import configure
from dpstream.shared.ports import Bus
from dpstream.shared.runtime.context import Context, Handler
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.runtime.signals import asked_to_stop
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.settings import Settings, read_settings
from dpstream.shared.values import Accepted, FrameRef, Ref, label_uri

HASTE = 5.0
"""Seconds between heartbeats."""


def label_nothing(_: None, command: m.Label, context: Context) -> m.LabelsDone:
    """Says that there are labels."""
    return _done(context, tuple(_accepted(command, ref, b"") for ref in command.frames))


def label_zeros(_: None, command: m.Label, context: Context) -> m.LabelsDone:
    """Labels of zeros, stored where real ones are."""
    return _done(context, tuple(_zeros(command, ref, context) for ref in command.frames))


def _zeros(command: m.Label, ref: FrameRef, context: Context) -> Accepted:
    frame = Batch.loads(context.fetch(ref.batch))[ref.index]
    label = FrameLabel(0.0, 0.0 * frame.positions)
    data = encode_labelled(frame, label, {})
    context.store.create(label_uri(command.recipe, ref.key), data)
    return _accepted(command, ref, data)


def _accepted(command: m.Label, ref: FrameRef, data: bytes) -> Accepted:
    return Accepted(
        key=ref.key,
        label=Ref.to(label_uri(command.recipe, ref.key), data),
        reused=False,
        max_force=0.0,
        seconds=0.0,
    )


def _done(context: Context, accepted: tuple[Accepted, ...]) -> m.LabelsDone:
    return m.LabelsDone(**context.envelope(), accepted=accepted)


def read_dataset(_: None, command: m.Train, context: Context) -> m.MemberTrained:
    """Fetches what it would learn, and gives up: the time of its last word is when it had it."""
    labelled = load_dataset(context.fetch, command.dataset)
    raise Permanent(f"{len(labelled)} labels read")


WORK: dict[str, tuple[str, dict[type[m.Command], Handler]]] = {
    "no-op": (m.Label.QUEUE.format(CAPABILITY), {m.Label: label_nothing}),
    "zeros": (m.Label.QUEUE.format(CAPABILITY), {m.Label: label_zeros}),
    "reader": (m.Train.QUEUE, {m.Train: read_dataset}),
}


def serve_as(role: str, bus: Bus, store: CountedStore, stopping: threading.Event) -> float:
    """Until `stopping` is set; seconds of CPU since it was at work."""
    if role == "coordinator":
        coordinator = Coordinator(bus, store)
        coordinator.open_all()
        return _at_work(bus, COORDINATOR, lambda: coordinator.run(stopping))
    with private_folder(None) as scratch:
        if role == "labeler":
            return _label(bus, store, stopping, scratch)
        queue, handlers = WORK[role]
        worker = Worker(role, bus, store, queue, handlers, None, scratch, HASTE, stopping)
        return _at_work(bus, queue, worker.run)


def _label(bus: Bus, store: CountedStore, stopping: threading.Event, scratch: Path) -> float:
    """As `python -m dpstream.services.labeler` does with these settings."""
    (post,) = LABELER.plans(read_settings(LabelerSettings), scratch)
    post.resources.start()
    queue, *others = post.queues
    worker: Worker[Any] = Worker(
        "labeler", bus, store, queue, post.handlers, post.resources, scratch, HASTE, stopping
    )
    worker.others = tuple(others)
    try:
        return _at_work(bus, queue, worker.run)
    finally:
        post.resources.close()


def _at_work(bus: Bus, queue: str, work: Callable[[], None]) -> float:
    bus.depth(queue)  # it is declared from here on
    print("at work", flush=True)
    before = time.process_time()
    work()
    return time.process_time() - before


def main() -> None:
    settings = read_settings(Settings)
    configure("error")
    with asked_to_stop() as stopping, closing(connect_bus(settings, stopping)) as bus:
        store = CountedStore(connect_store(settings, stopping))
        cpu = serve_as(sys.argv[1], bus, store, stopping)
    print(json.dumps({"requests": store.requests, "cpu": cpu}))


if __name__ == "__main__":
    main()
