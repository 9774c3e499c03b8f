"""Running one campaign on this machine, with something to look at meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live

from dpstream.export import export
from dpstream.inputs import Gathered
from dpstream.local import LocalCluster, is_over, sole_runner
from dpstream.submission import submit
from dpstream.view import facts, headline, screen
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
    store = FolderStore(root)
    with sole_runner(root, spec.name):
        submitted = submit(spec, gathered, recipe, store, time.time())
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
        console.print(f"{spec.name}: {headline(state)}", soft_wrap=True, markup=False)
        if state.finished is None:
            again = "everything finished is kept; the same command goes on from here"
            console.print(again, soft_wrap=True)
            return 130 if state.paused is None else 1
        for line in export(store, spec.name, root / spec.name):
            console.print(line, soft_wrap=True, markup=False)
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
            live.update(screen(desk.state, desk.progress, time.monotonic() - started))


def _log(desk: Desk, going_on: Callable[[], bool], console: Console, started: float) -> None:
    """The same facts as plain lines, each said when it changes."""
    said: dict[str, str] = {}
    while going_on():
        news = {"campaign": headline(desk.state), **facts(desk.state)}
        for name, fact in news.items():
            if said.get(name) != fact:
                said[name] = fact
                clock = f"{time.monotonic() - started:7.1f} s"
                console.print(f"{clock}  {name}: {fact}", soft_wrap=True, markup=False)
