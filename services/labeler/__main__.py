"""`python -m dpstream.services.labeler`: computes labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.labeler.handlers import HANDLERS
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main


def plans(settings: LabelerSettings, scratch: Path) -> Sequence[WorkerPlan]:
    """One worker, whatever it can run: two codes at once would share the cores of one."""
    resources = LabelerResources(
        scratch,
        settings.threads,
        frozenset(settings.labeler_calculators),
        frozenset(settings.labeler_codes),
    )
    return [WorkerPlan(settings.queues, HANDLERS, resources)]


LABELER = WorkerService(
    "labeler", "Labels frames with first-principles and other codes.", LabelerSettings, plans
)

if __name__ == "__main__":
    sys.exit(main(LABELER))
