"""Shows a campaign that is under way: on a live screen, or as plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from dpstream.services.coordinator.views.campaign import Status
from dpstream.services.coordinator.views.pace import Pace
from dpstream.terminal.console import print_line
from dpstream.terminal.pace import remaining
from dpstream.terminal.status import MOST_CONDITIONS, clock, progress_line, screen

SECONDS = 10.0
"""At least so long between two plain lines of one state."""
OTHER_LINES = 21
"""Of a screen, besides the conditions and with a few lines that wrap."""


class LiveView:
    """`status`: that of the campaign at the moment; `foot`: what Ctrl-C does; `warning`: the
    newest; `pace`: of its rounds so far."""

    def __init__(
        self,
        status: Callable[[], Status],
        console: Console,
        foot: str,
        warning: Callable[[], str] = str,
        pace: Pace | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.status, self.console = status, console
        self._foot, self._warning, self._timer = foot, warning, timer
        self._pace = pace or Pace()
        self._started = timer()
        self._printed: dict[str, str] = {}
        self._next = 0.0
        """When the next plain line is due."""

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return self._timer() - self._started

    def watch(self, going_on: Callable[[], bool]) -> None:
        """Show the campaign while `going_on`, which also waits between two updates."""
        if self.console.quiet:
            while going_on():
                pass
            return
        if not self.console.is_terminal:
            self._log()
            while going_on():
                self._log()
            return
        with Live(console=self.console, refresh_per_second=2, transient=True) as live:
            self._draw(live)
            while going_on():
                self._draw(live)

    def _draw(self, live: Live) -> None:
        status = self.status()
        self._pace.observe(status.overview, self._timer())
        most = max(1, min(MOST_CONDITIONS, self.console.height - OTHER_LINES))
        ahead = remaining(status.overview, self._pace)
        view = screen(status, self.elapsed, self._foot, self._warning(), ahead, most)
        live.update(view, refresh=True)

    def _log(self) -> None:
        """A line when the state changes or there is a new warning, and otherwise at intervals, if
        any figure has changed."""
        status = self.status()
        self._pace.observe(status.overview, self._timer())
        state, line = status.overview.headline, progress_line(status)
        is_new = self._printed.get("state") != state
        if is_new or (self.elapsed >= self._next and self._printed.get("line") != line):
            self._printed |= {"state": state, "line": line}
            self._next = self.elapsed + SECONDS
            print_line(self.console, f"{clock(self.elapsed)}  {line}")
        warning = self._warning()
        if warning and self._printed.get("warning") != warning:
            self._printed["warning"] = warning
            print_line(self.console, f"{clock(self.elapsed)}  warning: {warning}")
