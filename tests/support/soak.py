"""How much a test tries: full counts where `DPSTREAM_SOAK` is set (`make soak`), fewer else."""

from __future__ import annotations

import os

from hypothesis import settings

SOAK = bool(os.environ.get("DPSTREAM_SOAK"))


def examples(full: int, usual: int) -> settings:
    """For `hypothesis.given`: so many examples in `make soak`, and in `make test`."""
    return settings(max_examples=full if SOAK else usual)
