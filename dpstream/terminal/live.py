"""A campaign at work, shown while it goes on: a live screen, or plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from rich.console import Console
from rich.live import Live

from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.overview import headline
from dpstream.terminal.console import say
from dpstream.terminal.status import Learning, facts, screen


class WatchedCampaign(Protocol):
    """A campaign: what its ledger tells, and how far tasks are."""

    @property
    def state(self) -> State: ...

    @property
    def progress(self) -> Mapping[str, str]: ...


class LiveView:
    """A campaign and where to show it. `foot`: what Ctrl-C does; `warning`: the newest."""

    def __init__(
        self,
        campaign: WatchedCampaign,
        learning: Learning,
        console: Console,
        foot: str,
        warning: Callable[[], str] = str,
    ) -> None:
        self.campaign, self.learning, self.console = campaign, learning, console
        self._foot, self._warning = foot, warning
        self._started = time.monotonic()
        self._said: dict[str, str] = {}

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._started

    def watch(self, going_on: Callable[[], bool]) -> None:
        """Show it as long as `going_on`, which also waits between two looks."""
        if not self.console.is_terminal:
            while going_on():
                self._log()
            return
        with Live(console=self.console, refresh_per_second=2, transient=True) as live:
            while going_on():
                self._draw(live)

    def _draw(self, live: Live) -> None:
        """The live screen."""
        state, progress = self.campaign.state, dict(self.campaign.progress)
        live.update(
            screen(state, self.learning, progress, self.elapsed, self._foot, self._warning())
        )

    def _log(self) -> None:
        """The same facts as plain lines, each said when it changes."""
        state = self.campaign.state
        news = {
            "campaign": headline(state),
            **facts(state, self.learning),
            "last warning": self._warning(),
        }
        for name, fact in news.items():
            line = fact.splitlines()[-1] if fact else ""
            if line and self._said.get(name) != line:
                self._said[name] = line
                say(self.console, f"{self.elapsed:7.1f} s  {name}: {line}")
