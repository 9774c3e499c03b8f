"""`python -m benchmarks.services.crew ROLE`: one process of a benchmark.

It is configured by environment variables, as every service is. It counts its requests to the store
and prints them, with its CPU time, when it ends.
"""

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

HEARTBEAT = 5.0
"""Seconds between heartbeats."""


def label_nothing(_: None, command: m.Label, context: Context) -> m.LabelsDone:
    """Reports labels without computing or storing any."""
    return _done(context, tuple(_accepted(command, ref, b"") for ref in command.frames))


def label_zeros(_: None, command: m.Label, context: Context) -> m.LabelsDone:
    """Stores labels of zeros under the keys of real ones."""
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
    """Reads the dataset, then fails: the time of the failure is the time at which it was read."""
    labelled = load_dataset(context.fetch, command.dataset)
    raise Permanent(f"{len(labelled)} labels read")


WORK: dict[str, tuple[str, dict[type[m.Command], Handler]]] = {
    "no-op": (m.Label.QUEUE.format(CAPABILITY), {m.Label: label_nothing}),
    "zeros": (m.Label.QUEUE.format(CAPABILITY), {m.Label: label_zeros}),
    "reader": (m.Train.QUEUE, {m.Train: read_dataset}),
}


def serve_as(role: str, bus: Bus, store: CountedStore, stopping: threading.Event) -> float:
    """Serves until `stopping` is set; returns the CPU time since it was ready, s."""
    if role == "coordinator":
        coordinator = Coordinator(bus, store)
        coordinator.open_all()
        return _at_work(bus, COORDINATOR, lambda: coordinator.run(stopping))
    with private_folder(None) as scratch:
        if role == "labeler":
            return _label(bus, store, stopping, scratch)
        queue, handlers = WORK[role]
        worker = Worker(role, bus, store, queue, handlers, None, scratch, HEARTBEAT, stopping)
        return _at_work(bus, queue, worker.run)


def _label(bus: Bus, store: CountedStore, stopping: threading.Event, scratch: Path) -> float:
    """As `python -m dpstream.services.labeler` does with these settings."""
    (post,) = LABELER.plans(read_settings(LabelerSettings), scratch)
    post.resources.start()
    queue, *others = post.queues
    worker: Worker[Any] = Worker(
        "labeler", bus, store, queue, post.handlers, post.resources, scratch, HEARTBEAT, stopping
    )
    worker.others = tuple(others)
    try:
        return _at_work(bus, queue, worker.run)
    finally:
        post.resources.close()


def _at_work(bus: Bus, queue: str, work: Callable[[], None]) -> float:
    bus.depth(queue)  # declares the queue
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
