"""Runs one campaign on this machine and shows its status meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from dpstream.export.folder import export, is_exported
from dpstream.inputs.check_installed import check_device
from dpstream.inputs.gather import Gathered
from dpstream.running.amend import Draft, draft
from dpstream.running.first_checks import FirstChecks
from dpstream.running.local_cluster import LocalCluster, sole_runner
from dpstream.running.submit import submit
from dpstream.services.coordinator.ledger.submission import submission
from dpstream.services.coordinator.views.amendment import can_go_on
from dpstream.services.coordinator.views.campaign import CampaignView, Status
from dpstream.services.coordinator.views.overview import CampaignOverview, is_over
from dpstream.shared.messages import CampaignAmended, CampaignSubmitted
from dpstream.shared.runtime.device import device_of_environment
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Recipe, campaign_uri
from dpstream.terminal.console import notes, print_line
from dpstream.terminal.interrupt import INTERRUPTED, signals
from dpstream.terminal.live import LiveView
from dpstream.terminal.log_file import LogFile
from dpstream.terminal.plan import introduce
from dpstream.terminal.status import figures_table

LOOK = 0.5
"""Seconds between two updates of what is shown."""
DIFFER = (
    "correct labels and start it under another name (--name), or run the same command with "
    "--no-cross-check to use the imported labels as they are"
)
STOPS = "Ctrl-C stops; the same command continues from there"


def run_campaign(
    spec: Spec,
    gathered: Gathered,
    recipe: Recipe,
    checks: FirstChecks,
    root: Path,
    workers: Mapping[str, int],
    console: Console,
    agree: Callable[[Draft], None] | None = None,
    goes_on: str = "",
) -> int:
    """Run to the end, or to Ctrl-C. Exit status: 0 converged, 1 not converged or paused, 130
    interrupted (everything finished is kept; run again to go on).

    `agree`: asks a person whether the plan may become that of `spec` where it differs; None: it may
    not. `goes_on`: what a person types if the campaign has not converged. The result of a campaign
    that has ended before is printed at once. Raises `SpecError` before anything starts where `root`
    cannot be written, another run is at work there, the name is taken by a campaign with another
    spec, or DPSTREAM_DEVICE requires a GPU that is not there or that the backend cannot use.
    """
    device = device_of_environment()
    check_device(spec, device)
    with sole_runner(root, spec.name):
        store = FolderStore(root)
        known = store.exists(campaign_uri(spec.name, "submitted.json"))
        if not known:
            gathered = checks.passed(spec, gathered)
            introduce(console, spec, gathered, recipe)
        amended = draft(store, spec, gathered, time.time()) if known and agree else None
        if amended is None:
            submitted = submit(spec, gathered, recipe, store, time.time())
        else:
            submitted = submission(store, spec.name)
        view = CampaignView.read(store, spec.name)
        status = view.status
        if status.overview.imports_differ and checks.cross_check:
            print_line(console, f"{spec.name}: still paused: imported labels differ; {DIFFER}")
            return 1
        if status.overview.verdict is None or amended is not None:
            if known:
                introduce(console, spec, gathered, recipe)
                print_line(notes, _taken_up(status.overview))
            if amended is not None and agree is not None:
                agree(amended)
                amended.store_inputs(store)
            cluster = LocalCluster(root, workers, device)
            first = None if amended is None else amended.event
            status = _grow(submitted, view, cluster, first, console)
        return _verdict(status.overview, store, root / spec.name, console, goes_on)


def _taken_up(now: CampaignOverview) -> str:
    assert now.labels is not None
    how = "resumed; it was " if now.paused is not None else "resumed: "
    return f"{now.name}: {how}{now.headline}; {now.labels.labelled} labels exist"


def _grow(
    submitted: CampaignSubmitted,
    view: CampaignView,
    cluster: LocalCluster,
    amended: CampaignAmended | None,
    console: Console,
) -> Status:
    """The status when the campaign was over, or when a person stopped it; `view`: of what has
    happened before; `amended`: changes its plan first. Raises the error that ended a service;
    KeyboardInterrupt at the second request to stop."""

    def status() -> Status:
        return Status.of(open_campaign.state, view.committees, open_campaign.progress)

    def is_done() -> bool:
        over = is_over(open_campaign.state) and not cluster.awaits_resume(open_campaign)
        return bool(over or cluster.errors or asked.wait(LOOK))

    folder = cluster.root / campaign_uri(submitted.campaign)
    with (
        LogFile(folder / "run.log") as journal,
        signals(console) as asked,
        cluster.at_work(submitted, amended) as open_campaign,
    ):
        live = LiveView(status, notes, STOPS, lambda: journal.worst, view.pace)
        live.watch(lambda: not is_done())
        if asked.is_set():
            print_line(notes, "stopping; running tasks are released (Ctrl-C again: stop at once)")
    if cluster.errors:
        raise cluster.errors[0]
    return status()


# ------------------------------------------------------------------------------ at the end


def _verdict(
    now: CampaignOverview, store: FolderStore, folder: Path, console: Console, goes_on: str
) -> int:
    """Print where the campaign stands and export a finished one; the exit status."""
    print_line(console, f"{now.name}: {now.headline}")
    if now.verdict is None:
        further = DIFFER if now.imports_differ else "run the same command to continue"
        print_line(console, f"all finished results are kept; {further}")
        return INTERRUPTED if now.paused is None else 1
    view = CampaignView.read(store, now.name)
    notes.print(figures_table(view.status))
    if is_exported(folder, now.plan.number if now.plan else 1):
        print_line(console, f"{folder / 'README.txt'}: describes the files and how to run them")
    else:
        for line in export(store, now.name, folder):
            print_line(console, line)
    if can_go_on(view.state):
        print_line(notes, "next: remove the cause, then type dpstream run SPEC --amend")
    elif now.verdict == "not-converged" and goes_on:
        print_line(notes, f"next: {goes_on}")
    return 0 if now.verdict == "converged" else 1
