"""Commands on what a campaign has stored: `verify`, `repair`, `archive`, `delete`."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.options import (
    DEFAULT_ROOT,
    Campaign,
    Root,
    Yes,
    named,
    resolved,
    there,
    within,
)
from dpstream.export.checksums import damaged_files
from dpstream.integrity.archiving import write_verified
from dpstream.integrity.deletion import objects_of, still_runs
from dpstream.integrity.repair import plan as plan_repair
from dpstream.integrity.verify import verify as verify_campaign
from dpstream.new_campaign.folder import check_name
from dpstream.running.connection import is_folder
from dpstream.running.local_cluster import sole_runner
from dpstream.services.coordinator.ledger.archive_mark import mark_archived, mark_of
from dpstream.services.coordinator.ledger.ledger import verdict
from dpstream.shared.errors import SpecError, StoreError
from dpstream.shared.ports import Store
from dpstream.terminal.console import console, notes, print_line
from dpstream.terminal.progress import progress

Deep = Annotated[
    bool,
    typer.Option(
        "--deep",
        help="Also read trajectories and checkpoints, compare labels with their frames, and "
        "snapshots with the ledger.",
    ),
]
DAMAGED = 1
"""Exit status."""


def verify(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    deep: Deep = False,
    exported_to: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Also check an export of the campaign."),
    ] = None,
) -> None:
    """Check that no object of a campaign is damaged or missing.

    Reads the whole ledger, which is a chain of digests, and compares labels, datasets, models and
    inputs with the digests in it. Prints one line for each object that is damaged or missing.
    Changes nothing.

    Exit status: 0 no damage, 1 damage.
    """
    with within(root):
        store, name = resolved(campaign, root)
        exported = [] if exported_to is None else list(damaged_files(exported_to))
        result = verify_campaign(store, name, deep)
    for line in result.summary():
        print_line(notes, line)
    for line in (*map(str, result.damage), *exported):
        print_line(console, f"damaged: {line}")
    if exported:
        print_line(console, f"{exported_to}: {len(exported)} damaged; next: dpstream export {name}")
    if result.damage:
        print_line(console, f"{name}: {len(result.damage)} damaged; next: dpstream repair {name}")
    if result.damage or exported:
        raise typer.Exit(DAMAGED)
    print_line(console, f"{name}: no damage")


def repair(
    campaign: Annotated[str, typer.Argument(metavar="NAME", help="Campaign.")],
    root: Root = DEFAULT_ROOT,
    backup: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DIR|URL",
            help="A store with an earlier copy of the campaign, such as a dpstream export --full. "
            "Only objects with the digest that was written are taken from it.",
        ),
    ] = None,
    deep: Deep = False,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Recover it, after confirmation. Default: change nothing."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --apply: do not ask.")] = False,
) -> None:
    """List what is damaged in a campaign and what can be recovered; with --apply, recover it.

    The original bytes are restored if their digest proves them: from --from, or by correcting a
    single flipped bit. If a segment of the ledger is lost for good, the ledger ends before it:
    later events are processed again, labels are reused, and only results that are recorded nowhere
    else are computed again. The campaign is then paused: read dpstream logs NAME, and continue with
    dpstream resume NAME, or dpstream run.

    Damaged objects are moved to campaigns/NAME/damaged/ in the store. In a deployment, stop the
    coordinator first, and give the keys of the store's administrator: no user of dpstream access
    may replace or delete objects.

    Exit status: 0 no damage, or all of it can be recovered; 1 something is lost.
    """
    with within(root), ExitStack() as held:
        store, name = resolved(campaign, root)
        if apply and is_folder(root):
            held.enter_context(sole_runner(Path(root), name))
        planned = plan_repair(
            store, name, None if backup is None else there(backup, "--from"), deep
        )
        for line in planned.lines():
            print_line(console, line)
        if not planned.damaged:
            print_line(console, f"{name}: no damage")
        elif not apply:
            print_line(console, f"nothing was changed; next: dpstream repair {name} --apply")
        else:
            if not yes:
                typer.confirm("Repair the campaign?", abort=True)
            planned.write()
            print_line(
                console, f"{name}: repaired; damaged objects are kept in campaigns/{name}/damaged/"
            )
    raise typer.Exit(DAMAGED if planned.lost else 0)


def archive(
    campaign: Annotated[str, typer.Argument(metavar="NAME", help="Campaign.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write. Default: NAME.zip."),
    ] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Archive a campaign that has ended: write all of it to one file, and leave it out of lists.

    The file is that of dpstream export --archive: ledger, labels, datasets, models, report. It is
    written after everything in it was compared with its digests; unpacked, it works as --store.
    Nothing is deleted: dpstream delete NAME does that. dpstream list --archived also lists archived
    campaigns, as does the dashboard on request; a campaign that continues with a changed plan is
    listed again.

    Whoever may read the campaign may write the file. In a deployment, leaving the campaign out of
    lists needs the keys of the store's administrator.
    """
    with within(root):
        store, name = named(campaign, root)
        last = verdict(store, name)
        if last is None:
            raise SpecError(
                f"{name}: has not ended; dpstream export {name} --archive writes what there is"
            )
        mark = write_verified(store, name, output or Path(f"{name}.zip"), time.time())
        print_line(console, f"{mark.describe()}: complete; verified against all digests")
        try:
            mark_archived(store, last, mark)
        except StoreError as error:
            print_line(
                console,
                f"{name}: archived, but dpstream list still shows it: the store refused to record "
                f"the archive: {error}",
            )
            return
    print_line(
        console, f"{name}: archived; next: dpstream delete {name} frees its space and its name"
    )


def delete(
    campaign: Annotated[str, typer.Argument(metavar="NAME", help="Campaign.")],
    root: Root = DEFAULT_ROOT,
    force: Annotated[
        bool, typer.Option("--force", help="Delete it even if it has not ended.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Delete a campaign that has ended: ledger, models, datasets, inputs. Frees its name.

    Labels stay: other campaigns use them. dpstream archive NAME keeps a copy first. Needs the keys
    of the store's administrator.
    """
    check_name(campaign)
    with within(root):
        store, name = there(root), campaign
        keys = objects_of(store, name)
        if not keys:
            resolved(name, root)  # which says what there is
        if still_runs(store, name) and not force:
            raise SpecError(
                f"{name}: has not ended; first dpstream cancel {name}, or, if nothing runs it any "
                f"more, dpstream delete {name} --force"
            )
        with ExitStack() as held:
            if is_folder(root):
                held.enter_context(sole_runner(Path(root), name))
            if not yes:
                print_line(console, _archive_line(store, name))
                typer.confirm(f"Delete {len(keys)} objects of {name} for good?", abort=True)
            with progress("deleted", len(keys)) as step:
                for key in keys:
                    store.delete(key)
                    step(key)
            if is_folder(root):  # empty folders and the lock
                shutil.rmtree(Path(root) / "campaigns" / name, ignore_errors=True)
    print_line(console, f"deleted {name}: {len(keys)} objects; its labels stay")


def _archive_line(store: Store, name: str) -> str:
    last = None if still_runs(store, name) else verdict(store, name)
    mark = None if last is None else mark_of(store, last)
    if mark is None:
        return f"{name}: not archived; dpstream archive {name} keeps a copy"
    return f"{name}: archived as {mark.describe()}"
