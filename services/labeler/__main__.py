"""`python -m dpstream.services.labeler`: computes labels with first-principles and other codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.labeler.handlers import HANDLERS
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.runtime.device import chosen
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main, version_of

PACKAGES = {"deepmd": "deepmd-kit"}
"""Python distributions of codes, where their names differ."""


def plans(settings: LabelerSettings, scratch: Path) -> Sequence[WorkerPlan]:
    """One worker for all codes: two codes at once would compete for the same cores."""
    device = None if settings.device == "auto" else chosen(settings.device)
    resources = LabelerResources(
        scratch,
        settings.threads,
        frozenset(settings.labeler_calculators),
        frozenset(settings.labeler_codes),
        grace=settings.grace,
        device=device,
    )
    return [WorkerPlan(settings.queues, HANDLERS, resources, _programs(settings), device)]


def _programs(settings: LabelerSettings) -> dict[str, str]:
    """Codes and calculators with their versions, as far as no program has to run for that."""
    codes = {code: version_of(PACKAGES.get(code, code)) for code in settings.labeler_codes}
    return codes | (dict.fromkeys(settings.labeler_calculators, "") if "ase" in codes else {})


LABELER = WorkerService(
    "labeler", "Labels frames with first-principles and other codes.", LabelerSettings, plans
)

if __name__ == "__main__":
    sys.exit(main(LABELER))
