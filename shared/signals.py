"""SIGTERM and SIGINT as an event. The first asks to stop; the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ASKING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """The event that the first signal sets. The second ends the process, with 128 + its number:
    engines die with their parent. To be used in the main thread."""
    stopping = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {kind: signal.signal(kind, lambda number, frame: None) for kind in ASKING}
    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # A handler runs in the midst of the main thread, where setting an event may wait for ever for
    # a lock which that very thread holds. So another thread is told, through a pipe.
    watcher = threading.Thread(target=_watch, args=(reading, stopping), daemon=True)
    watcher.start()
    try:
        yield stopping
    finally:
        signal.set_wakeup_fd(outer)
        for kind, handler in before.items():
            signal.signal(kind, handler)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _watch(reading: int, stopping: threading.Event) -> None:
    while number := os.read(reading, 1):
        if number[0] not in ASKING:  # a child has ended, or the like
            continue
        if stopping.is_set():
            os._exit(128 + number[0])
        stopping.set()
