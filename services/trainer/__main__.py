"""`python -m services.trainer`: trains committee members, one at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from services.trainer.handlers import HANDLERS, Bench
from services.trainer.settings import TrainerSettings
from shared.messages import Train
from shared.process import Post, Service, main


def posts(settings: TrainerSettings, scratch: Path) -> Sequence[Post]:
    return [
        Post(
            (Train.QUEUE,),
            HANDLERS,
            Bench(scratch, settings.threads, frozenset(settings.trainer_models)),
        )
    ]


TRAINER = Service(
    "trainer", "Trains members of committees with DeePMD-kit.", TrainerSettings, posts
)

if __name__ == "__main__":
    sys.exit(main(TRAINER))
