"""Turns signals that request a stop into an event."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGINT)
Handler = Callable[[int, FrameType | None], object]


def end_at_once(number: int) -> None:
    """Exit with status 128 + signal number; child processes die with their parent."""
    os._exit(128 + number)


@contextmanager
def asked_to_stop(
    kinds: Sequence[signal.Signals] = ASKING,
    handler: Handler = lambda number, frame: None,
    again: Callable[[int], object] = end_at_once,
) -> Iterator[threading.Event]:
    """An event that the first signal of these kinds sets; each further signal calls `again` in
    another thread. `handler` is called at every signal in the main thread; if it installs another
    handler, that one stays installed. To be used in the main thread."""
    stopping = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {kind: signal.signal(kind, handler) for kind in kinds}
    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # A handler interrupts the main thread, where setting an event could deadlock on a lock that
    # this thread holds. Therefore another thread, woken through a pipe, sets it.
    watcher = threading.Thread(target=_watch, args=(reading, kinds, stopping, again), daemon=True)
    watcher.start()
    try:
        yield stopping
    finally:
        signal.set_wakeup_fd(outer)
        for kind, earlier in before.items():
            if signal.getsignal(kind) is handler:
                signal.signal(kind, earlier)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _watch(
    reading: int,
    kinds: Sequence[signal.Signals],
    stopping: threading.Event,
    again: Callable[[int], object],
) -> None:
    while number := os.read(reading, 1):
        if number[0] not in kinds:  # another signal, such as SIGCHLD
            continue
        if stopping.is_set():
            again(number[0])
        stopping.set()
