"""`python -m services.explorer`: runs trajectories, judges and selects frames."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from services.explorer.bench import Bench
from services.explorer.handlers import HANDLERS
from services.explorer.settings import ExplorerSettings
from shared.process import Post, Service, main


def posts(settings: ExplorerSettings, scratch: Path) -> Sequence[Post]:
    """A worker with an engine of its own for every queue: short tasks never wait for long ones."""
    formats, trusting = frozenset(settings.explorer_models), settings.explorer_templates == "any"
    return [
        Post((queue,), HANDLERS, Bench(scratch / queue, settings.threads, formats, trusting))
        for queue in dict.fromkeys(settings.explorer_queues)
    ]


EXPLORER = Service(
    "explorer",
    "Explores by molecular dynamics with LAMMPS; judges, selects and audits frames.",
    ExplorerSettings,
    posts,
)

if __name__ == "__main__":
    sys.exit(main(EXPLORER))
