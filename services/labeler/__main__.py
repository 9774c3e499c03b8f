"""`python -m dpstream.services.labeler`: computes labels with first-principles and other codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dpstream.services.labeler.handlers import HANDLERS, unserved
from dpstream.services.labeler.known_labels import check_key
from dpstream.services.labeler.recipes import installed_versions, is_installed
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.device import Device, chosen
from dpstream.shared.runtime.process import WorkerPlan, WorkerService, main, version_of
from dpstream.shared.runtime.slots import Need, slots_of, this_process

PACKAGES = {"deepmd": "deepmd-kit"}
"""Python distributions of codes, where their names differ."""
LABELING_MIB = 400.0
"""Memory of one task: measured 311 MiB for methane with PySCF. Larger systems need far more."""


def plans(settings: LabelerSettings, scratch: Path) -> Sequence[WorkerPlan]:
    """A worker for all codes in each slot: two codes at once in one would compete for its cores.
    Raises SpecError if this machine can run none of them."""
    if not any(map(is_installed, settings.labeler_codes)):
        raise SpecError(
            f"DPSTREAM_LABELER_CODES: this machine can run none of "
            f"{', '.join(settings.labeler_codes)}: install one, or name its program in "
            "DPSTREAM_LABELER_COMMANDS"
        )
    device = None if settings.device == "auto" else chosen(settings.device)
    count = slots_of(settings.labeler_slots, this_process(), Need(settings.threads, LABELING_MIB))
    return [_plan(settings, scratch / f"slot-{number}", device) for number in range(count)]


def _plan(settings: LabelerSettings, scratch: Path, device: Device | None) -> WorkerPlan:
    resources = LabelerResources(
        scratch,
        settings.threads,
        frozenset(settings.labeler_calculators),
        frozenset(settings.labeler_codes),
        grace=settings.grace,
        device=device,
        signing_key=_signing_key(settings),
        reuse_unsigned=settings.labeler_unsigned == "reuse",
    )
    return WorkerPlan(settings.queues, HANDLERS, resources, _programs(settings), device, unserved)


def _signing_key(settings: LabelerSettings) -> str | None:
    key = settings.labeler_signing_key
    return None if key is None else key.get_secret_value()


def _programs(settings: LabelerSettings) -> dict[str, str]:
    """Codes and calculators with their versions, empty where a campaign states them."""
    codes = {code: version_of(PACKAGES.get(code, code)) for code in settings.labeler_codes}
    calculators = settings.labeler_calculators if "ase" in codes else ()
    return {
        **codes,
        **dict.fromkeys(calculators, ""),
        **installed_versions(codes, calculators),
    }


LABELER = WorkerService(
    "labeler",
    "Labels frames with first-principles and other codes.",
    LabelerSettings,
    plans,
    lambda settings, store: check_key(_signing_key(settings), store),
)

if __name__ == "__main__":
    sys.exit(main(LABELER))
