"""The `dpstream` command."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from dpstream.export import export as export_campaign
from dpstream.inputs import Gathered, gather
from dpstream.plan import cross_check, plan
from dpstream.relabel import label_frames
from dpstream.report import write_report
from dpstream.runner import run_campaign
from dpstream.template import new_campaign
from dpstream.view import summary
from dpstream.why import why as why_frame
from services.coordinator.ledger import campaigns, load_state
from services.labeler.recipes import make_recipe
from shared.embedded import FolderStore
from shared.errors import DpstreamError, SpecError
from shared.spec import Spec, expand_material, load_spec
from shared.spec_errors import explain
from shared.values import Recipe

app = typer.Typer(
    name="dpstream",
    help="Grow a Deep Potential by concurrent learning: train a committee, explore with it, label "
    "what it disagrees on, retrain, until nothing surprises it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()

DEFAULT_ROOT = Path("runs")
SpecFile = Annotated[Path, typer.Argument(help="Campaign spec, YAML or JSON; see `dpstream new`.")]
Root = Annotated[
    Path, typer.Option(help="Folder of all campaigns; the labels in it are shared between them.")
]
Campaign = Annotated[
    str | None, typer.Argument(help="Campaign name; may be left out when there is only one.")
]
Mode = Annotated[str | None, typer.Option(help="lockstep or streaming, instead of the spec's.")]


@app.command()
def run(
    spec: SpecFile,
    mode: Mode = None,
    workers: Annotated[
        str, typer.Option(help="Workers of each service on this machine.")
    ] = "trainer=2,explorer=2,labeler=2",
    root: Root = DEFAULT_ROOT,
    name: Annotated[str | None, typer.Option(help="Campaign name, instead of the spec's.")] = None,
) -> None:
    """Run a campaign on this machine; an existing one is resumed.

    Ctrl-C or a crash loses nothing but the work in flight. Exit status: 0 converged,
    1 not converged, 2 bad input, 130 interrupted.
    """
    crew = _parse_workers(workers)
    loaded, gathered, recipe = _prepared(spec, mode, name)
    if loaded.name not in campaigns(FolderStore(root)):
        cross_check(gathered, loaded, partial(label_frames, loaded, recipe))
    for part in plan(loaded, gathered, recipe):
        console.print(part)
    raise typer.Exit(run_campaign(loaded, gathered, recipe, root, crew, console))


@app.command()
def validate(spec: SpecFile, mode: Mode = None) -> None:
    """Check a spec and all that it names, and print the plan. Starts nothing."""
    loaded, gathered, recipe = _prepared(spec, mode, None)
    cross_check(gathered, loaded, partial(label_frames, loaded, recipe))
    for part in plan(loaded, gathered, recipe):
        console.print(part)


@app.command()
def status(campaign: Campaign = None, root: Root = DEFAULT_ROOT) -> None:
    """Where a campaign stands, from its ledger; works while it runs and after."""
    store = FolderStore(root)
    console.print(summary(load_state(store, _named(store, campaign, root))))


@app.command()
def report(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    output: Annotated[Path, typer.Option(help="Where to write it.")] = Path("report.html"),
) -> None:
    """Write the campaign's report: one HTML file that opens offline."""
    store = FolderStore(root)
    write_report(store, _named(store, campaign, root), output)
    console.print(f"wrote {output}")


@app.command()
def export(
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("export"),
    full: Annotated[
        bool, typer.Option("--full", help="Also the ledger and all labels: a root of its own.")
    ] = False,
) -> None:
    """Write models, dataset (DeePMD and extxyz) and report into a folder."""
    store = FolderStore(root)
    for line in export_campaign(store, _named(store, campaign, root), output, full):
        console.print(line, soft_wrap=True)


@app.command()
def why(
    frame: Annotated[str, typer.Argument(help="Frame key, or how it begins.")],
    campaign: Campaign = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Why a frame was labelled, or was not: its life, from the ledger."""
    store = FolderStore(root)
    for line in why_frame(store, _named(store, campaign, root), frame):
        console.print(line, soft_wrap=True, markup=False)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the campaign, and of the folder made.")],
) -> None:
    """Write a commented spec to edit."""
    console.print(f"wrote {new_campaign(name, Path.cwd())}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the campaign spec."""
    print(json.dumps(Spec.model_json_schema(), indent=1))


def main() -> None:
    """Entry point: bad input is one line and exit status 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except DpstreamError as error:
        print(f"dpstream: {error}", file=sys.stderr)
    except typer.Abort:
        print("dpstream: interrupted", file=sys.stderr)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        print(f"dpstream: {error.format_message()}", file=sys.stderr)
    sys.exit(2)


def _prepared(path: Path, mode: str | None, name: str | None) -> tuple[Spec, Gathered, Recipe]:
    """Everything checked that can be checked before anything starts."""
    given = {key: value for key, value in (("mode", mode), ("name", name)) if value is not None}
    try:
        spec = Spec.model_validate({**load_spec(path).model_dump(), **given})
    except ValidationError as error:
        raise SpecError(f"--{explain(error, Spec)}") from error
    recipe = make_recipe(spec.labels)
    return expand_material(spec), gather(spec, path.parent), recipe


def _named(store: FolderStore, campaign: str | None, root: Path) -> str:
    known = campaigns(store)
    if campaign is None and len(known) == 1:
        return known[0]
    if campaign in known:
        return str(campaign)
    there = ", ".join(known) or "none"
    asked = "say which campaign" if campaign is None else f"no campaign {campaign!r}"
    raise SpecError(f"{root}: {asked}; there are: {there}")


def _parse_workers(text: str) -> dict[str, int]:
    crew = {"trainer": 1, "explorer": 1, "labeler": 1}
    for part in text.split(","):
        service, _, count = (piece.strip() for piece in part.partition("="))
        if service not in crew or not count.isdigit() or int(count) < 1:
            raise SpecError(
                f"--workers: {part!r}: expected trainer=N, explorer=N or labeler=N with N ≥ 1"
            )
        crew[service] = int(count)
    return crew
