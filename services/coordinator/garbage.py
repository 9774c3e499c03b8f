"""How often Python looks for reference cycles beside a state of millions of objects.

Messages and states contain no cycles: reference counts free them. Every collection looks at them
nevertheless, the oldest generation's at all of them, which took a quarter of the coordinator's time
with 30,000 frames, in pauses that grow with the state.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = (50_000, 50)
"""New objects after which the youngest generation is collected, and collections of it after which
the middle one is."""
USUALLY = gc.get_threshold()[2]
"""Collections of the middle generation after which the oldest may be."""
NEVER = 1_000_000_000


def collect_rarely() -> None:
    """Makes collections rare in this process. Cycles that libraries leave are still found."""
    gc.set_threshold(*RARELY, USUALLY)


@contextmanager
def no_full_collections() -> Iterator[None]:
    """Suspends collections of the oldest generation, where many messages come one after the
    other."""
    gc.set_threshold(*gc.get_threshold()[:2], NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*gc.get_threshold()[:2], USUALLY)
