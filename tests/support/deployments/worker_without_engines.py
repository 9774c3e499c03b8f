"""`python -m tests.support.deployments.worker_without_engines trainer|explorer|labeler`: a worker
service without engines.

Everything else is real: settings, process, worker runtime, bus and store. The results are those of
`CampaignSimulator`; their objects have content, so that tests can lose, repeat or overwrite them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

import dpstream.shared.runtime.task_outcome
from dpstream.services.coordinator.fleet.assumptions import Times
from dpstream.shared import messages as m
from dpstream.shared.runtime.context import Context, Handler
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main
from dpstream.shared.settings import WorkerSettings
from dpstream.shared.values import Accepted, Ref
from tests.support.campaigns.campaign_simulator import CampaignSimulator

QUEUES = {
    "trainer": ("train",),
    "explorer": ("explore", "judge", "screen"),
    "labeler": ("label.tblite",),
}
RIPE = 2
SEED = 1
"""Of the times of labels, as in a simulation."""
WAVEFUNCTION = 256 * 1024
"""Bytes that every task writes to its scratch folder, as engines do."""
COMPUTED = "computed"
"""Prefix under which every computation of a label leaves an object, by frame."""
FULL_SECONDS = 1.0


class SimulatedWorkerSettings(WorkerSettings):
    labeler_slots: int = Field(default=1, description="tasks of a labeler at once")
    simulated_seconds: float = Field(default=0.05, description="per task")
    simulated_labels: str = Field(
        default="", description="JSON: Times of each frame of a label task"
    )
    simulated_gate: Path | None = Field(
        default=None, description="a task goes on when this file is there"
    )
    simulated_fatal: str = Field(
        default="", description="key of a frame whose label kills its worker"
    )


@dataclass
class NoEngines:
    settings: SimulatedWorkerSettings

    def start(self) -> None:
        """Nothing to warm up."""

    def close(self) -> None:
        """Nothing to end."""


def answer(resources: NoEngines, command: Any, context: Context) -> m.Result:
    (context.scratch / "wavefunction").write_bytes(bytes(WAVEFUNCTION))
    _work(resources.settings, command, context)
    world = CampaignSimulator(RIPE)
    if isinstance(command, m.Select):
        world.manifests[command.pool.uri] = context.fetch(command.pool).decode()
    *chunks, last = (_published_as(result, context) for result in world.answer(command)[1:])
    for chunk in chunks:
        context.publish(chunk)
    return last


def _published_as(result: m.Message, context: Context) -> m.Result:
    assert isinstance(result, m.Result)
    return _stored(result.model_copy(update=context.envelope()), context)


def _stored(result: m.Result, context: Context) -> m.Result:
    """The result, after everything it refers to is in the store; a model names its worker."""
    if isinstance(result, m.LabelsDone):
        accepted = tuple(_label(label, context) for label in result.accepted)
        return result.model_copy(update={"accepted": accepted})
    own = {}
    if isinstance(result, m.MemberTrained):
        own["model"] = context.put("model.pb", f"a model of {context.worker}".encode())
    if isinstance(result, m.AuditDone):
        own["pairs"] = context.put("pairs.json", b"{}")
    for ref in _refs(result):
        _keep(ref, context)
    return result.model_copy(update=own)


def _work(settings: SimulatedWorkerSettings, command: m.Command, context: Context) -> None:
    if isinstance(command, m.Label) and settings.simulated_fatal in [f.key for f in command.frames]:
        os.kill(os.getpid(), signal.SIGKILL)
    over = time.monotonic() + _seconds(settings, command)
    gate = settings.simulated_gate
    while time.monotonic() < over or (gate is not None and not gate.exists()):
        context.check()
        time.sleep(0.01)


def _seconds(settings: SimulatedWorkerSettings, command: m.Command) -> float:
    if not settings.simulated_labels or not isinstance(command, m.Label):
        return settings.simulated_seconds
    times = Times.model_validate_json(settings.simulated_labels)
    return sum(times.draw(SEED, frame.key) for frame in command.frames)


def _label(label: Accepted, context: Context) -> Accepted:
    """As the labeler does: look the label up, or compute it and try to store it first."""
    known = context.retry(lambda: context.store.exists(label.label.uri))
    if not known:
        trace = f"{COMPUTED}/{label.key}/{uuid.uuid4().hex}"
        context.retry(lambda: context.store.create(trace, context.worker.encode()))
    return label.model_copy(update={"reused": known or not _keep(label.label, context)})


def _keep(ref: Ref, context: Context) -> bool:
    """Whether this call created the object; simulated objects contain their own names."""
    body = ref.uri.removeprefix("objects/").encode()
    if Ref.to(ref.uri, body) != ref:
        return False
    return context.retry(lambda: context.store.create(ref.uri, body))


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _refs(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _refs(item)


HANDLERS: dict[type[m.Command], Handler] = dict.fromkeys(m.COMMANDS, answer)


def service(role: str) -> WorkerService[SimulatedWorkerSettings]:
    def plans(settings: SimulatedWorkerSettings, scratch: Path) -> Sequence[WorkerPlan]:
        slots = settings.labeler_slots if role == "labeler" else 1
        return [
            WorkerPlan((queue,), HANDLERS, NoEngines(settings)) for queue in QUEUES[role] * slots
        ]

    return WorkerService(role, "Completes tasks without engines.", SimulatedWorkerSettings, plans)


if __name__ == "__main__":
    dpstream.shared.runtime.task_outcome.FULL_SECONDS = FULL_SECONDS
    sys.exit(main(service(sys.argv[1]), sys.argv[2:]))
