"""The commands for a deployment. They read from its store, where the ledger is authoritative. Their
requests go over the bus, and wait there while no coordinator runs. For a store in a folder, without
a broker, they go to the `dpstream run` that is at work there."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.options import (
    DEFAULT_ROOT,
    AsJson,
    Broker,
    Campaign,
    CrossCheck,
    Force,
    Mode,
    NewName,
    Root,
    SpecFile,
    Wait,
    named,
    prepared,
    there,
    within,
)
from dpstream.deploy.access_files import parse_deployment, with_pools, write_access
from dpstream.inputs.gather import Gathered
from dpstream.running.amend import once_more
from dpstream.running.connection import (
    ANSWER_SECONDS,
    UPDATE_SECONDS,
    FollowedCampaign,
    once_taken_in,
    open_bus,
    open_store,
    publish,
    request,
)
from dpstream.running.first_checks import FirstChecks
from dpstream.running.requests import rests, waits_for_coordinator, way_to
from dpstream.running.submit import announced
from dpstream.running.submit import submit as freeze
from dpstream.running.workers_version import with_workers_version
from dpstream.services.coordinator.fleet.pools import read_fleet
from dpstream.services.coordinator.ledger.archive_mark import mark_of
from dpstream.services.coordinator.ledger.ledger import (
    LedgerReader,
    campaigns,
    load_state,
    messages_of,
    verdict,
)
from dpstream.services.coordinator.views.overview import (
    CampaignOverview,
    finished_overview,
    overview,
    verdict_line,
)
from dpstream.services.coordinator.views.tasks import TaskLine, retryable
from dpstream.shared.access import ROLES
from dpstream.shared.errors import CorruptLedger, DigestMismatch, SpecError, errors_at
from dpstream.shared.messages import (
    CampaignCancelled,
    CampaignPaused,
    CampaignResumed,
    CampaignSubmitted,
    Message,
    TasksRetried,
)
from dpstream.shared.ports import Bus, Store
from dpstream.shared.spec import Spec
from dpstream.shared.values import Recipe, campaign_uri
from dpstream.terminal.console import console, notes, print_line
from dpstream.terminal.ledger_lines import LedgerLines
from dpstream.terminal.live import LiveView
from dpstream.terminal.plan import introduce
from dpstream.terminal.status import next_step
from dpstream.terminal.tables import listing_table

GOES_ON = (
    "; to continue it, change its plan: dpstream run SPEC --amend (in a deployment: dpstream amend "
    "NAME SPEC)"
)
LEAVES = "Ctrl-C stops watching; the campaign continues"

Name = Annotated[str, typer.Argument(metavar="NAME", help="Campaign.")]
REASON = "Reason, shown by dpstream status and logs."


def submit(
    spec: SpecFile,
    mode: Mode = None,
    name: NewName = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
    cross_check: CrossCheck = True,
    force: Force = False,
) -> None:
    """Submit a campaign to a deployment. No engine has to be installed here.

    Submitting the same campaign again changes nothing.
    """
    loaded, gathered, recipe = prepared(spec, mode, name, engines=False)
    with within(root), closing(open_bus(broker)) as bus:
        store, checks = open_store(root), FirstChecks(spec, cross_check, force)
        submitted = handed_in(loaded, gathered, recipe, checks, store, bus)
        _answer(store, submitted, wait)


def handed_in(
    spec: Spec, gathered: Gathered, recipe: Recipe, checks: FirstChecks, store: Store, bus: Bus
) -> CampaignSubmitted:
    """Hand a campaign to the coordinator of a deployment; a new one is checked and shown first."""
    with errors_at(str(checks.spec), SpecError):
        spec, recipe = with_workers_version(spec, recipe, store)
    if not store.exists(campaign_uri(spec.name, "submitted.json")):
        gathered = checks.passed(spec, gathered)
        introduce(console, spec, gathered, recipe)
    submitted = freeze(spec, gathered, recipe, store, time.time())
    publish(bus, announced(submitted))
    return submitted


def list_(
    root: Root = DEFAULT_ROOT,
    archived: Annotated[
        bool, typer.Option("--archived", help="Also list archived campaigns.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List all campaigns with their progress."""
    with within(root):
        store = there(root)
        listed = [_listed(store, name) for name in campaigns(store)]
    shown = [now for now in listed if archived or now.archived is None]
    if as_json:
        console.print_json(data=[now.model_dump(mode="json") for now in shown])
        return
    table = listing_table("campaign", "progress")
    for now in shown:
        where = "" if now.archived is None else f"; archived as {now.archived}"
        table.add_row(now.name, now.headline + where)
    if shown:
        console.print(table)
    if len(shown) < len(listed):
        left_out = len(listed) - len(shown)
        them = "campaign is not listed; dpstream list --archived shows it"
        if left_out > 1:
            them = "campaigns are not listed; dpstream list --archived shows them"
        print_line(console, f"{left_out} archived {them}")
    elif not listed:
        print_line(console, "no campaigns")


def _listed(store: Store, name: str) -> CampaignOverview:
    """Where a campaign stands; its damage, so that the others are listed all the same."""
    try:
        last = verdict(store, name)
        if last is not None:
            return finished_overview(last, mark_of(store, last))
        return overview(load_state(store, name))
    except (CorruptLedger, DigestMismatch, ValueError) as error:
        reason = " ".join(str(error).split())
        line = f"damaged: {reason}; next: dpstream repair {name} lists what can be recovered"
        return CampaignOverview(name=name, standing="broken", headline=line)


def watch(campaign: Campaign = None, root: Root = DEFAULT_ROOT, broker: Broker = None) -> None:
    """Follow a campaign until it ends; with a broker, task progress is shown too.

    Exit status: 0 converged; 1 not converged, cancelled or paused.
    """
    with within(root):
        store, name = named(campaign, root)
        bus = open_bus(broker) if broker else None
        if verdict(store, name) is None and (remark := rests(root, broker, name)):
            print_line(notes, f"{name}: {remark}")
        try:
            followed = FollowedCampaign.open(store, name, bus)
            status = look_on(followed, followed.goes_on)
        finally:
            if bus is not None:
                bus.close()
    raise typer.Exit(status)


def look_on(followed: FollowedCampaign, going_on: Callable[[], bool]) -> int:
    """Show a campaign while `going_on`; the exit status."""
    LiveView(lambda: followed.status, notes, LEAVES, pace=followed.pace).watch(going_on)
    now = followed.status.overview
    print_line(console, f"{now.name}: {now.headline}")
    if step := next_step(now):
        print_line(notes, step)
    return 0 if now.verdict == "converged" else 1


def logs(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    task: Annotated[
        str, typer.Option(metavar="TASK", help="Only this task: its id, or the first characters.")
    ] = "",
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Keep printing new lines until the campaign ends."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the history of a campaign from its ledger: events, decisions, failures.

    With --json, one message in each line, as in docs/messages.schema.json.
    """
    with within(root):
        store, name = named(campaign, root)
        reading, lines = LedgerReader.begin(store, name), LedgerLines(task, as_json)
        while True:
            for line in lines.of(messages_of(reading.new_segments())):
                print_line(console, line)
            if not follow or reading.state.finished is not None:
                return
            time.sleep(4 * UPDATE_SECONDS)


def pause(
    campaign: Name,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help=REASON)] = "on request",
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
) -> None:
    """Pause a campaign: no new task starts; running tasks finish and their results are kept."""
    _send_request(request(CampaignPaused, _checked(campaign, root), why=why), root, broker, wait)


def resume(
    campaign: Name, root: Root = DEFAULT_ROOT, broker: Broker = None, wait: Wait = ANSWER_SECONDS
) -> None:
    """Resume a paused campaign. If an abandoned task paused it, that task is retried.

    If a campaign has ended because its final model could not be verified, the model is verified
    again.
    """
    if not _continued(campaign, root, broker, wait):
        _send_request(request(CampaignResumed, _checked(campaign, root)), root, broker, wait)


def cancel(
    campaign: Name,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help=REASON)] = "",
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
) -> None:
    """Cancel a campaign for good. Results are kept; running label tasks finish."""
    _send_request(request(CampaignCancelled, _checked(campaign, root), why=why), root, broker, wait)


def retry(
    campaign: Name,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK]…",
            help="Task ids, or the first characters of them; default: all abandoned tasks.",
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    wait: Wait = ANSWER_SECONDS,
) -> None:
    """Retry abandoned tasks.

    Abandoned trajectories are not retried: their round has continued without them. In a campaign
    that has ended, only the verification of the final model can be retried.
    """
    if _continued(campaign, root, broker, wait):
        return
    name = _checked(campaign, root)
    with within(root):
        useful = retryable(load_state(there(root), name))
    chosen = [_chosen(begins, useful) for begins in tasks or ()]
    if not useful:
        raise SpecError(f"{name}: no abandoned task can be retried")
    _send_request(
        request(TasksRetried, name, tasks=[task.task for task in chosen]), root, broker, wait
    )
    for task in chosen or useful:
        print_line(console, f"retry requested: {task.task} {task.title}")


def _chosen(begins: str, tasks: list[TaskLine]) -> TaskLine:
    found = [task for task in tasks if task.task.startswith(begins)]
    if len(found) != 1:
        known = ", ".join(f"{task.task} ({task.title})" for task in tasks) or "none"
        what = f"matches {len(found)} abandoned tasks" if found else "no such abandoned task"
        raise SpecError(f"TASK: {begins!r}: {what}; tasks that can be retried: {known}")
    return found[0]


def _continued(campaign: str, root: str, broker: str | None, wait: float) -> bool:
    """Has a campaign go on that ended for want of something that can be tried again; whether it was
    such a one."""
    with within(root):
        store, name = named(campaign, root)
        found = None if verdict(store, name) is None else once_more(store, name, time.time())
        if found is None:
            return False
        with way_to(root, broker, name, "dpstream run SPEC --amend") as way:
            message = found.announced(store)
            way.send(message)
            _answer(store, message, wait, way.unanswered)
    return True


def _checked(campaign: str, root: str) -> str:
    """The name, if there is such a campaign and it has not ended."""
    with within(root):
        store, name = named(campaign, root)
        last = verdict(store, name)
    if last is not None:
        for_good = f"; dpstream new NAME --from {name} begins a campaign with its labels"
        instead = for_good if last.verdict == "cancelled" else GOES_ON
        raise SpecError(f"{name}: the campaign has already ended ({verdict_line(last)}){instead}")
    return name


def _send_request(message: Message, root: str, broker: str | None, wait: float) -> None:
    with within(root), way_to(root, broker, message.campaign) as way:
        way.send(message)
        _answer(there(root), message, wait, way.unanswered)


def _answer(
    store: Store,
    message: Message,
    wait: float,
    unanswered: Callable[[Message, float], str] = waits_for_coordinator,
) -> None:
    """Print where the campaign stands once the coordinator has taken a message in."""
    now = once_taken_in(store, message, wait)
    if now is not None:
        print_line(console, f"{message.campaign}: {now.headline}")
        if step := next_step(now):
            print_line(notes, step)
        return
    print_line(console, unanswered(message, wait))


def access(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", "--out", metavar="DIR", help="Folder to write to."),
    ],
    bucket: Annotated[str, typer.Option(metavar="NAME", help="Bucket of the store.")] = "dpstream",
    prefix: Annotated[
        str, typer.Option(metavar="PREFIX", help="Key prefix of dpstream's objects in the bucket.")
    ] = "",
    users: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Comma-separated users, each as ROLE, NAME=ROLE or NAME=ROLE+ROLE; roles: "
            f"{', '.join(ROLES)}.",
        ),
    ] = ",".join(ROLES),
    fleet: Annotated[
        Path | None,
        typer.Option(
            "--fleet", metavar="FILE", help="Fleet file: also a user for each of its pools."
        ),
    ] = None,
    vhost: Annotated[
        str, typer.Option(metavar="NAME", help="Virtual host of the broker.")
    ] = "dpstream",
    broker_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Prefix of every queue and exchange name.")
    ] = "",
) -> None:
    """Write least-privilege credentials for the broker and the store, one user per role by default.

    DIR/passwords.env (mode 0600) holds all secrets. Existing secrets are kept; delete a line to
    have that secret generated again.
    RabbitMQ imports DIR/rabbitmq/definitions.json. SeaweedFS reads DIR/seaweedfs/s3.json (mode
    0600). DIR/aws and DIR/alibaba hold one bucket policy per user. With pools of AWS Batch in the
    fleet file, DIR/aws/coordinator-fleet.json is the policy that the coordinator needs for them.
    """
    pools = read_fleet(fleet) if fleet else None
    everyone = with_pools(users, pools)
    place = parse_deployment(everyone, bucket, prefix, vhost, broker_prefix)
    for file in write_access(place, output, pools):
        print_line(console, f"wrote {file}")
