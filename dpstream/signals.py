"""Being asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

INTERRUPTED = 130
"""Exit status after that."""


@contextmanager
def signals(console: Console) -> Iterator[threading.Event]:
    """Set on the first Ctrl-C, SIGTERM or hang-up; the second raises KeyboardInterrupt, and from
    then on there is nothing left to ask for. Signals that whoever started us has silenced (nohup)
    stay silenced."""
    asked, insisted = threading.Event(), threading.Event()

    def handle(number: int, _frame: Any) -> None:
        if number == signal.SIGHUP:
            console.quiet = True  # nobody is there to read it, and writing would fail
        if not asked.is_set():
            asked.set()
        elif not insisted.is_set():
            insisted.set()
            raise KeyboardInterrupt

    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    heard = [kind for kind, handler in before.items() if handler != signal.SIG_IGN]
    for kind in heard:
        signal.signal(kind, handle)
    try:
        yield asked
    finally:
        for kind in heard:
            signal.signal(kind, signal.SIG_IGN if insisted.is_set() else before[kind])
