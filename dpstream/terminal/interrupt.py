"""Turns Ctrl-C and similar signals into a request to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from dpstream.shared.runtime.signals import asked_to_stop
from dpstream.terminal.console import notes

INTERRUPTED = 130
"""Exit status after an interruption."""


@contextmanager
def signals(console: Console) -> Iterator[threading.Event]:
    """An event that is set on the first Ctrl-C, SIGTERM or SIGHUP. The second signal raises
    KeyboardInterrupt; afterwards all three are ignored. Signals that were ignored when the process
    started (nohup) stay ignored."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kinds = [kind for kind in wanted if signal.getsignal(kind) != signal.SIG_IGN]
    received = 0

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if number == signal.SIGHUP:
            console.quiet = notes.quiet = True  # the terminal is gone, so writing would fail
        if received > 1:
            for kind in kinds:
                signal.signal(kind, signal.SIG_IGN)
            raise KeyboardInterrupt

    with asked_to_stop(kinds, handle, again=lambda number: None) as stopping:
        yield stopping
