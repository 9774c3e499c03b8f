"""Running one campaign on this machine, with something to look at meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live

from dpstream.inputs import Gathered
from dpstream.local import LocalCluster, is_over, sole_runner
from dpstream.submission import submit
from dpstream.view import errors_line, headline, labels_line, screen, shares
from services.coordinator.service import Desk
from shared.embedded import FolderStore
from shared.spec import Spec
from shared.values import Recipe

LOOK = 0.5
"""Seconds between looks at the state."""


def run_campaign(
    spec: Spec,
    gathered: Gathered,
    recipe: Recipe,
    root: Path,
    workers: Mapping[str, int],
    console: Console,
) -> int:
    """Run to the end, or to Ctrl-C. Exit status: 0 converged, 1 not converged or paused, 130
    interrupted (everything finished is kept; run again to go on)."""
    with sole_runner(root, spec.name):
        submitted = submit(spec, gathered, recipe, FolderStore(root), time.time())
        cluster = LocalCluster(root, workers)
        interrupted = _signals()
        desk = cluster.start(submitted)
        try:
            _watch(cluster, desk, interrupted, console)
        finally:
            cluster.stop()
    if cluster.errors:
        raise cluster.errors[0]
    state = desk.state
    console.print(headline(state))
    if state.finished is None:
        return 130 if state.paused is None else 1
    return 0 if state.finished.verdict == "converged" else 1


def _signals() -> threading.Event:
    """Set on Ctrl-C and SIGTERM."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    return asked


def _watch(
    cluster: LocalCluster, desk: Desk, interrupted: threading.Event, console: Console
) -> None:
    started = time.monotonic()

    def going_on() -> bool:
        return not (is_over(desk.state) or cluster.errors or interrupted.wait(LOOK))

    if not console.is_terminal:
        _log(desk, going_on, console, started)
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        while going_on():
            live.update(screen(desk.state, desk.progress, 0, time.monotonic() - started))


def _log(desk: Desk, going_on: Callable[[], bool], console: Console, started: float) -> None:
    """The same facts as plain lines, each said when it changes."""
    said: dict[str, str] = {}
    while going_on():
        state = desk.state
        facts = {
            "": headline(state),
            "frames": shares(state),
            "labels": labels_line(state, 0),
            "errors": errors_line(state),
        }
        for name, fact in facts.items():
            if said.get(name) != fact:
                said[name] = fact
                console.print(f"{time.monotonic() - started:7.1f} s  {name} {fact}", soft_wrap=True)
