"""The commands that check what a campaign has stored, and repair it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.options import DEFAULT_ROOT, Campaign, Root, resolved, there, within
from dpstream.export.checksums import damaged_files
from dpstream.integrity.repair import plan
from dpstream.integrity.verify import verify as verify_campaign
from dpstream.running.connection import is_folder
from dpstream.running.local_cluster import sole_runner
from dpstream.terminal.console import console, say

DAMAGED = 1


Deep = Annotated[
    bool,
    typer.Option(
        "--deep",
        help="Also read trajectories and checkpoints, compare labels with their frames, and "
        "snapshots with the ledger.",
    ),
]


def verify(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    deep: Deep = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Also check an export of the campaign."),
    ] = None,
) -> None:
    """Check that everything a campaign has stored is still what was written.

    Reads the whole ledger, which is a chain of digests, and compares labels, datasets, models and
    inputs with the digests in it. Prints one line for each object that is damaged or missing.
    Changes nothing.

    Exit status: 0 no damage, 1 damage.
    """
    with within(root):
        store, name = resolved(campaign, root)
        exported = [] if export is None else list(damaged_files(export))
        result = verify_campaign(store, name, deep)
    say(console, f"ledger: {result.ledger.chain}")
    listed = f"; {result.listed} more exist, --deep reads them" if result.listed else ""
    say(console, f"objects: {result.read} compared with their digests{listed}")
    for line in (*map(str, result.damage), *exported):
        say(console, f"damaged: {line}")
    if exported:
        say(console, f"{export}: {len(exported)} damaged; next: dpstream export {name} -o {export}")
    if result.damage:
        say(console, f"{name}: {len(result.damage)} damaged; next: dpstream repair {name}")
    if result.damage or exported:
        raise typer.Exit(DAMAGED)
    say(console, f"{name}: no damage")


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
        bool, typer.Option("--apply", help="Do it, after a question. Default: change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --apply: do not ask.")] = False,
) -> None:
    """Say what is damaged in a campaign and what can be recovered; with --apply, recover it.

    The bytes that were written are restored where their digest proves them: from --from, or by
    correcting a single flipped bit. If a segment of the ledger is lost for good, the ledger goes on
    before it: later events are handled again, labels are used again, and only results that are
    recorded nowhere else are computed again. The campaign is then paused: read
    dpstream logs NAME, and go on with dpstream resume NAME, or dpstream run.

    Damaged objects are moved to campaigns/NAME/damaged/ in the store. In a deployment, stop the
    coordinator first, and give the keys of the store's administrator: no user of dpstream access
    may replace or delete objects.

    Exit status: 0 no damage, or all of it can be recovered; 1 something is lost.
    """
    with within(root), ExitStack() as held:
        store, name = resolved(campaign, root)
        if apply and is_folder(root):
            held.enter_context(sole_runner(Path(root), name))
        planned = plan(store, name, None if backup is None else there(backup, "--from"), deep)
        for heading, lines in (
            ("damaged", planned.damaged),
            ("recovered" if apply else "recoverable", planned.recovered),
            ("lost", planned.lost),
        ):
            for line in lines:
                say(console, f"{heading}: {line}")
        if not planned.damaged:
            say(console, f"{name}: no damage")
        elif not apply:
            say(console, f"nothing was changed; to do it: dpstream repair {name} --apply")
        else:
            if not yes:
                typer.confirm("Write this?", abort=True)
            planned.write()
            say(console, f"{name}: repaired; damaged objects are kept in campaigns/{name}/damaged/")
    raise typer.Exit(DAMAGED if planned.lost else 0)
