"""Shows a campaign that is under way: on a live screen, or as plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from dpstream.services.coordinator.views.campaign import Status
from dpstream.terminal.console import say
from dpstream.terminal.status import figures, screen


class LiveView:
    """`status`: that of the campaign at the moment; `foot`: what Ctrl-C does; `warning`: the
    newest."""

    def __init__(
        self,
        status: Callable[[], Status],
        console: Console,
        foot: str,
        warning: Callable[[], str] = str,
    ) -> None:
        self.status, self.console = status, console
        self._foot, self._warning = foot, warning
        self._started = time.monotonic()
        self._printed: dict[str, str] = {}

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._started

    def watch(self, going_on: Callable[[], bool]) -> None:
        """Show the campaign while `going_on`, which also waits between two updates."""
        if self.console.quiet:
            while going_on():
                pass
            return
        if not self.console.is_terminal:
            while going_on():
                self._log()
            return
        with Live(console=self.console, refresh_per_second=2, transient=True) as live:
            while going_on():
                self._draw(live)

    def _draw(self, live: Live) -> None:
        live.update(screen(self.status(), self.elapsed, self._foot, self._warning()))

    def _log(self) -> None:
        """The same figures as plain lines, each printed when it changes."""
        status = self.status()
        news = {"campaign": status.overview.headline, **figures(status)}
        news["last warning"] = self._warning()
        for name, text in news.items():
            line = text.splitlines()[-1] if text else ""
            if line and self._printed.get(name) != line:
                self._printed[name] = line
                say(self.console, f"{self.elapsed:7.1f} s  {name}: {line}")
