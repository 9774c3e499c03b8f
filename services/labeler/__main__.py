"""`python -m services.labeler`: computes labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from services.labeler.handlers import HANDLERS, Bench
from services.labeler.settings import LabelerSettings
from shared.process import Post, Service, main


def posts(settings: LabelerSettings, scratch: Path) -> Sequence[Post]:
    """One worker, whatever it can run: two codes at once would share the cores of one."""
    bench = Bench(
        scratch,
        settings.threads,
        frozenset(settings.labeler_calculators),
        frozenset(settings.labeler_codes),
    )
    return [Post(settings.queues, HANDLERS, bench)]


LABELER = Service(
    "labeler", "Labels frames with first-principles and other codes.", LabelerSettings, posts
)

if __name__ == "__main__":
    sys.exit(main(LABELER))
