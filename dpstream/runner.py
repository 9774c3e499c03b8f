"""Running one campaign on this machine, with something to look at meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from dpstream.export import export
from dpstream.inputs import Gathered
from dpstream.journal import Journal
from dpstream.local import LocalCluster, is_over, sole_runner
from dpstream.plan import cross_check, plan
from dpstream.relabel import label_frames
from dpstream.submission import submit
from dpstream.view import Learning, facts, figures, headline, screen
from services.coordinator.ledger import heard_and_decided, load_state
from services.coordinator.service import Desk
from services.coordinator.state import State
from shared.embedded import FolderStore
from shared.messages import CampaignSubmitted
from shared.spec import Spec
from shared.values import Recipe, campaign_uri

LOOK = 0.5
"""Seconds between looks at the state."""
INTERRUPTED = 130


def run_campaign(
    spec: Spec,
    gathered: Gathered,
    recipe: Recipe,
    root: Path,
    workers: Mapping[str, int],
    console: Console,
) -> int:
    """Run to the end, or to Ctrl-C. Exit status: 0 converged, 1 not converged or paused, 130
    interrupted (everything finished is kept; run again to go on).

    A campaign that has ended before is told at once. Raises `SpecError` before anything starts
    where `root` cannot be written, another run is at work there, the name is taken by a campaign
    with another spec, or imported labels do not fit the recipe.
    """
    with sole_runner(root, spec.name):
        store = FolderStore(root)
        known = store.exists(campaign_uri(spec.name, "submitted.json"))
        if not known:
            cross_check(gathered, spec, partial(label_frames, spec, recipe))
        submitted = submit(spec, gathered, recipe, store, time.time())
        state = load_state(store, spec.name)
        if state.finished is None:
            for part in plan(spec, gathered, recipe):
                console.print(part)
            if known:
                _say(console, _taken_up(state))
            state = _grow(submitted, root, workers, console)
        return _verdict(state, store, root / spec.name, console)


def _taken_up(state: State) -> str:
    labels = sum(frame.status == "labelled" for frame in state.frames.values())
    how = "resumed; it was " if state.paused is not None else "resumed: "
    return f"{state.spec.name}: {how}{headline(state)}; {labels} labels are there already"


def _grow(
    submitted: CampaignSubmitted, root: Path, workers: Mapping[str, int], console: Console
) -> State:
    """The state when it was over, or when somebody asked to stop. Raises what a service died of;
    KeyboardInterrupt when asked to stop a second time."""
    store = FolderStore(root)
    learning = Learning.of(heard_and_decided(store, submitted.campaign))
    folder = root / campaign_uri(submitted.campaign)
    with Journal(folder / "run.log") as journal, _signals(console) as asked:
        cluster = LocalCluster(root, workers)
        with _at_work(cluster, submitted) as desk:
            _watch(Watched(desk, learning, journal, console), cluster, asked)
            if asked.is_set():
                _say(console, "stopping; what is at work is handed back (again: end at once)")
    if cluster.errors:
        raise cluster.errors[0]
    return desk.state


@contextmanager
def _at_work(cluster: LocalCluster, submitted: CampaignSubmitted) -> Iterator[Desk]:
    """The cluster started, and stopped in good order; at once on KeyboardInterrupt."""
    try:
        try:
            yield cluster.start(submitted)
        except Exception:
            cluster.stop()
            raise
        cluster.stop()
    except KeyboardInterrupt:
        cluster.kill()
        raise


@contextmanager
def _signals(console: Console) -> Iterator[threading.Event]:
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


# ------------------------------------------------------------------------------ to look at


class Watched:
    """A campaign at work and where to show it."""

    def __init__(self, desk: Desk, learning: Learning, journal: Journal, console: Console) -> None:
        self.desk, self.learning, self.journal, self.console = desk, learning, journal, console
        self._started = time.monotonic()
        self._said: dict[str, str] = {}

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._started

    def draw(self, live: Live) -> None:
        """The live screen."""
        shown = screen(
            self.desk.state, self.learning, self.desk.progress, self.elapsed, self.journal.worst
        )
        live.update(shown)

    def log(self) -> None:
        """The same facts as plain lines, each said when it changes."""
        news = {
            "campaign": headline(self.desk.state),
            **facts(self.desk.state, self.learning),
            "last warning": self.journal.worst,
        }
        for name, fact in news.items():
            line = fact.splitlines()[-1] if fact else ""
            if line and self._said.get(name) != line:
                self._said[name] = line
                _say(self.console, f"{self.elapsed:7.1f} s  {name}: {line}")


def _watch(watched: Watched, cluster: LocalCluster, asked: threading.Event) -> None:
    def going_on() -> bool:
        return not (is_over(watched.desk.state) or cluster.errors or asked.wait(LOOK))

    if not watched.console.is_terminal:
        _repeat(watched.log, going_on)
        return
    with Live(console=watched.console, refresh_per_second=2, transient=True) as live:
        _repeat(partial(watched.draw, live), going_on)


def _repeat(look: Callable[[], None], going_on: Callable[[], bool]) -> None:
    while going_on():
        look()


# ------------------------------------------------------------------------------ at the end


def _verdict(state: State, store: FolderStore, folder: Path, console: Console) -> int:
    """Say how it stands, export what is finished; the exit status."""
    _say(console, f"{state.spec.name}: {headline(state)}")
    if state.finished is None:
        _say(console, "everything finished is kept; the same command goes on from here")
        return INTERRUPTED if state.paused is None else 1
    console.print(figures(state, Learning.of(heard_and_decided(store, state.spec.name))))
    if (folder / "README.txt").exists():  # an export's last file
        _say(console, f"{folder / 'README.txt'}: what is what, and how to run it")
    else:
        for line in export(store, state.spec.name, folder):
            _say(console, line)
    return 0 if state.finished.verdict == "converged" else 1


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
