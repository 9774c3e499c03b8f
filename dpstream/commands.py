"""The commands of `dpstream`, each with what it checks before anything starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from dpstream.engines import check_engines
from dpstream.export import export as export_campaign
from dpstream.inputs import Gathered, gather
from dpstream.plan import cross_check, plan
from dpstream.relabel import label_frames
from dpstream.report import write_report
from dpstream.runner import run_campaign
from dpstream.submission import stored_spec
from dpstream.template import new_campaign
from dpstream.view import Learning, summary
from dpstream.why import why as why_frame
from services.coordinator.ledger import campaigns, heard_and_decided, load_state
from services.labeler.recipes import make_recipe
from shared.embedded import FolderStore
from shared.errors import CorruptLedger, SpecError, StoreError
from shared.spec import Spec, expand_material, load_spec
from shared.spec_errors import did_you_mean, explain
from shared.values import Recipe

app = typer.Typer(
    name="dpstream",
    help="Grow a Deep Potential by concurrent learning: train a committee, explore with it, label "
    "what it disagrees on, retrain, until nothing surprises it.",
    epilog="To begin: dpstream new NAME, edit NAME/campaign.yaml, dpstream validate it, "
    "dpstream run it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()

MOST_WORKERS = 64
"""Of one service: each has a warm engine of some 0.5 GB."""
WORKERS = {"trainer": 2, "explorer": 2, "labeler": 2}

DEFAULT_ROOT = Path("runs")
SpecFile = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC", help="Campaign spec, YAML or JSON; `dpstream new` writes one to edit."
    ),
]
Root = Annotated[
    Path,
    typer.Option(
        metavar="DIR", help="Folder of all campaigns; the labels in it are shared between them."
    ),
]
Campaign = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Campaign; may be left out when there is only one."),
]
Mode = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="lockstep (DP-GEN's rounds, reproducible) or streaming (no barriers), instead of "
        "the spec's.",
    ),
]


@app.command()
def run(
    spec: SpecFile,
    mode: Mode = None,
    workers: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Workers of each service here; those not named keep their number."
        ),
    ] = ",".join(f"{service}={count}" for service, count in WORKERS.items()),
    root: Root = DEFAULT_ROOT,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Campaign name, instead of the spec's: the same spec begun anew."
        ),
    ] = None,
) -> None:
    """Run a campaign on this machine; an existing one is resumed.

    Models, dataset and report end up in DIR/NAME.
    Ctrl-C or a crash loses only the work in flight; the same command goes on.

    Exit status: 0 converged, 1 not converged, 2 bad input,
    3 a fault of dpstream itself, 130 interrupted.
    """
    crew = _parse_workers(workers)
    loaded, gathered, recipe = _prepared(spec, mode, name)
    with _in(root):
        raise typer.Exit(run_campaign(loaded, gathered, recipe, root, crew, console))


@app.command()
def validate(spec: SpecFile, mode: Mode = None) -> None:
    """Check a spec and all that it names, and print the plan. Starts nothing.

    Imported labelled sets are cross-checked: a few frames are computed again.
    """
    loaded, gathered, recipe = _prepared(spec, mode, None)
    cross_check(gathered, loaded, lambda frames: label_frames(loaded, recipe, frames))
    for part in plan(loaded, gathered, recipe):
        console.print(part)


@app.command()
def status(campaign: Campaign = None, root: Root = DEFAULT_ROOT) -> None:
    """Where a campaign stands, from its ledger; also while it runs."""
    with _in(root):
        store, name = _named(campaign, root)
        learning = Learning.of(heard_and_decided(store, name))
        console.print(summary(load_state(store, name), learning))


@app.command()
def report(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")] = Path(
        "report.html"
    ),
) -> None:
    """Write the report: one HTML file that opens offline; also of an unfinished campaign."""
    with _in(root):
        store, name = _named(campaign, root)
        write_report(store, name, output)
    console.print(f"wrote {output}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def export(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")] = Path(
        "export"
    ),
    full: Annotated[
        bool, typer.Option("--full", help="Also the ledger and all labels: a root of its own.")
    ] = False,
) -> None:
    """Write models, dataset (DeePMD and extxyz) and report into a folder."""
    with _in(root):
        store, name = _named(campaign, root)
        for line in export_campaign(store, name, output, full):
            console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def why(
    frame: Annotated[
        str,
        typer.Argument(metavar="FRAME", help="Frame key, or how it begins; the report names some."),
    ],
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Why a frame was labelled, or was not: its life, from the ledger."""
    if not frame:
        raise SpecError("FRAME: '' is no key; give a frame's key, or how it begins")
    with _in(root):
        store, name = _named(campaign, root)
        for line in why_frame(store, name, frame):
            console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def new(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the campaign, and of the folder made here."),
    ],
) -> None:
    """Make a folder with a commented spec to edit."""
    made = new_campaign(name, Path.cwd())
    lines = (
        f"wrote {made}",
        f"next: structures into {made.parent / 'structures'}, edit the spec, then dpstream "
        f"validate {Path(name) / made.name}",
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the spec, e.g. for an editor."""
    print(json.dumps(Spec.model_json_schema(), indent=1))


# ------------------------------------------------------------------------------ what was asked for


def _prepared(path: Path, mode: str | None, name: str | None) -> tuple[Spec, Gathered, Recipe]:
    """Everything checked that can be checked before anything starts."""
    given = {key: value for key, value in (("mode", mode), ("name", name)) if value is not None}
    loaded = load_spec(path)
    try:
        spec = Spec.model_validate({**loaded.model_dump(), **given})
    except ValidationError as error:
        raise SpecError(f"--{explain(error, Spec)}") from error
    try:
        recipe = make_recipe(spec.labels)
        check_engines(spec)
        return expand_material(spec), gather(spec, path.parent), recipe
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


@contextmanager
def _in(root: Path) -> Iterator[None]:
    """Errors of a store and its ledgers name the folder they are in."""
    try:
        yield
    except CorruptLedger as error:
        raise SpecError(f"{root}: {error}; restore it, or begin anew with --name") from error
    except StoreError as error:
        raise SpecError(f"{root}: {error}") from error


def _named(campaign: str | None, root: Path) -> tuple[FolderStore, str]:
    """The store under `root`, and the campaign that is meant. Makes no folder."""
    if not root.is_dir():
        there = "is a file" if root.exists() else "no such folder"
        raise SpecError(f"--root: {root}: {there}; campaigns are in the --root they were run with")
    store = FolderStore(root)
    known = campaigns(store)
    if campaign is None and len(known) == 1:
        campaign = known[0]
    if campaign not in known:
        raise SpecError(f"--root: {root}: {_unnamed(campaign, known)}")
    stored_spec(store, campaign)
    return store, campaign


def _unnamed(campaign: str | None, known: list[str]) -> str:
    if not known:
        return "holds no campaign; dpstream run SPEC begins one"
    there = ", ".join(known)
    if campaign is None:
        return f"holds several campaigns; name one of {there}"
    return f"no campaign {campaign!r}{did_you_mean(campaign, known)}; there are: {there}"


def _parse_workers(text: str) -> dict[str, int]:
    crew = dict(WORKERS)
    for part in text.split(","):
        service, _, count = (piece.strip() for piece in part.partition("="))
        if service not in crew or not _is_count(count):
            raise SpecError(
                f"--workers: {part!r}: expected trainer=N, explorer=N or labeler=N with N from 1 "
                f"to {MOST_WORKERS}, separated by commas"
            )
        crew[service] = int(count)
    return crew


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_WORKERS
