"""Running one campaign on this machine, with something to look at meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dpstream.export.folder import export
from dpstream.inputs.gather import Gathered
from dpstream.running.label_here import check_imported
from dpstream.running.local_cluster import LocalCluster, sole_runner
from dpstream.running.submit import submit
from dpstream.services.coordinator.ledger.ledger import load_state, read_messages
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.overview import headline, is_over
from dpstream.shared.messages import CampaignSubmitted
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Recipe, campaign_uri
from dpstream.terminal.console import say
from dpstream.terminal.interrupt import INTERRUPTED, signals
from dpstream.terminal.live import LiveView
from dpstream.terminal.log_file import LogFile
from dpstream.terminal.plan import plan
from dpstream.terminal.status import Learning, figures

LOOK = 0.5
"""Seconds between looks at the state."""
STOPS = "Ctrl-C stops; the same command continues from there"


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
            check_imported(gathered, spec, recipe)
        submitted = submit(spec, gathered, recipe, store, time.time())
        state = load_state(store, spec.name)
        if state.finished is None:
            for part in plan(spec, gathered, recipe):
                console.print(part)
            if known:
                say(console, _taken_up(state))
            state = _grow(submitted, root, workers, console)
        return _verdict(state, store, root / spec.name, console)


def _taken_up(state: State) -> str:
    labels = sum(frame.status == "labelled" for frame in state.labels.frames.values())
    how = "resumed; it was " if state.paused is not None else "resumed: "
    return f"{state.spec.name}: {how}{headline(state)}; {labels} labels exist"


def _grow(
    submitted: CampaignSubmitted, root: Path, workers: Mapping[str, int], console: Console
) -> State:
    """The state when it was over, or when somebody asked to stop. Raises what a service died of;
    KeyboardInterrupt when asked to stop a second time."""
    store = FolderStore(root)
    learning = Learning.of(read_messages(store, submitted.campaign))
    folder = root / campaign_uri(submitted.campaign)
    with LogFile(folder / "run.log") as journal, signals(console) as asked:
        cluster = LocalCluster(root, workers)
        with _at_work(cluster, submitted) as open_campaign:
            watched = LiveView(open_campaign, learning, console, STOPS, lambda: journal.worst)
            watched.watch(
                lambda: not (is_over(open_campaign.state) or cluster.errors or asked.wait(LOOK))
            )
            if asked.is_set():
                say(console, "stopping; running tasks are returned (Ctrl-C again: stop at once)")
    if cluster.errors:
        raise cluster.errors[0]
    return open_campaign.state


@contextmanager
def _at_work(cluster: LocalCluster, submitted: CampaignSubmitted) -> Iterator[OpenCampaign]:
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


# ------------------------------------------------------------------------------ at the end


def _verdict(state: State, store: FolderStore, folder: Path, console: Console) -> int:
    """Say how it stands, export what is finished; the exit status."""
    say(console, f"{state.spec.name}: {headline(state)}")
    if state.finished is None:
        say(console, "all finished results are kept; run the same command to continue")
        return INTERRUPTED if state.paused is None else 1
    console.print(figures(state, Learning.of(read_messages(store, state.spec.name))))
    if (folder / "README.txt").exists():  # an export's last file
        say(console, f"{folder / 'README.txt'}: describes the files and how to run them")
    else:
        for line in export(store, state.spec.name, folder):
            say(console, line)
    return 0 if state.finished.verdict == "converged" else 1
