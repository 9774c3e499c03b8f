"""`python -m dpstream.services.trainer`: trains committee members."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.trainer.handlers import HANDLERS, unserved
from dpstream.services.trainer.resources import TrainerResources
from dpstream.services.trainer.settings import TrainerSettings
from dpstream.shared.logs import logger
from dpstream.shared.messages import Train
from dpstream.shared.programs import DISTRIBUTIONS
from dpstream.shared.runtime.device import Device, chosen
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main, versions_of
from dpstream.shared.runtime.slots import Need, fitting, slots_of, this_process

log = logger()

TRAINING_MIB = 1200.0
"""Memory of one training on a CPU: measured 990 MiB for an alloy of 108 atoms (TensorFlow)."""
TRAINING_ON_GPU_MIB, GPU_MIB = 4000.0, 1200.0
"""Memory of one training on a GPU: of the machine, assumed; of the GPU, measured 1.1 GB for the
same alloy (PyTorch)."""


def plans(settings: TrainerSettings, scratch: Path) -> Sequence[WorkerPlan]:
    """A worker with its own child process for each slot."""
    models = frozenset(settings.trainer_models)
    device = chosen(settings.device)
    plans = []
    for number in range(slots(settings, device)):
        own = scratch / f"slot-{number}"
        # One check holds for all slots, which would start one after another.
        resources = TrainerResources(own, settings.threads, models, device, checks_gpu=number == 0)
        programs = versions_of(DISTRIBUTIONS)
        plan = WorkerPlan((Train.QUEUE,), HANDLERS, resources, programs, device, unserved)
        plans.append(plan)
    return plans


def slots(settings: TrainerSettings, device: Device) -> int:
    """The number of slots on `device`; logs once if its GPU could run more than the one training
    of the default."""
    gpu = device.gpu
    capacity = this_process(gpu.memory_mib or None if gpu else None)  # 0: not reported
    need = Need(settings.threads, TRAINING_ON_GPU_MIB if gpu else TRAINING_MIB, GPU_MIB)
    count = slots_of(settings.trainer_slots, capacity, need)
    if gpu is not None and count == 1 and (possible := fitting(capacity, need)) > 1:
        log.info(
            "the GPU can run more trainings at once: DPSTREAM_TRAINER_SLOTS=auto",
            gpu=gpu.name,
            slots=possible,
        )
    return count


TRAINER = WorkerService(
    "trainer", "Trains committee members with DeePMD-kit.", TrainerSettings, plans
)

if __name__ == "__main__":
    sys.exit(main(TRAINER))
