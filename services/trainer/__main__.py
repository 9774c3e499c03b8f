"""`python -m dpstream.services.trainer`: trains committee members, one at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.trainer.handlers import HANDLERS
from dpstream.services.trainer.resources import TrainerResources
from dpstream.services.trainer.settings import TrainerSettings
from dpstream.shared.messages import Train
from dpstream.shared.runtime.device import chosen
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main, versions_of

PROGRAMS = ("deepmd-kit", "tensorflow", "tensorflow-cpu", "torch", "jax")


def plans(settings: TrainerSettings, scratch: Path) -> Sequence[WorkerPlan]:
    models = frozenset(settings.trainer_models)
    device = chosen(settings.device)
    resources = TrainerResources(scratch, settings.threads, models, device)
    return [WorkerPlan((Train.QUEUE,), HANDLERS, resources, versions_of(PROGRAMS), device)]


TRAINER = WorkerService(
    "trainer", "Trains committee members with DeePMD-kit.", TrainerSettings, plans
)

if __name__ == "__main__":
    sys.exit(main(TRAINER))
