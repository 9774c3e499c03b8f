"""`python -m dpstream.services.labeler`: computes labels with first-principles and other codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.labeler.handlers import HANDLERS
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main


def plans(settings: LabelerSettings, scratch: Path) -> Sequence[WorkerPlan]:
    """One worker for all codes: two codes at once would compete for the same cores."""
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
