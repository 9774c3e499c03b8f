"""The `dpstream` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpstream.inputs import Gathered, gather
from dpstream.plan import plan
from dpstream.runner import run_campaign
from services.labeler.recipes import make_recipe
from shared.errors import DpstreamError, SpecError
from shared.spec import Spec, expand_material, load_spec
from shared.values import Recipe

app = typer.Typer(
    name="dpstream",
    help="Grow a Deep Potential by concurrent learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

SpecFile = Annotated[Path, typer.Argument(help="Campaign spec, YAML or JSON; see `dpstream new`.")]
Root = Annotated[
    Path, typer.Option(help="Folder of all campaigns; labels in it are shared between them.")
]
Campaign = Annotated[
    str | None, typer.Argument(help="Campaign name; may be left out when there is only one.")
]
DEFAULT_ROOT = Path("runs")


@app.command()
def run(
    spec: SpecFile,
    mode: Annotated[
        str | None, typer.Option(help="lockstep or streaming, instead of the spec's.")
    ] = None,
    workers: Annotated[
        str, typer.Option(help="Workers of each service on this machine.")
    ] = "trainer=2,explorer=2,labeler=2",
    root: Root = DEFAULT_ROOT,
    name: Annotated[str | None, typer.Option(help="Campaign name, instead of the spec's.")] = None,
) -> None:
    """Run a campaign on this machine; on an existing one, resume it."""
    loaded, gathered, recipe = _prepared(spec, mode, name)
    crew = _parse_workers(workers)
    for part in plan(loaded, gathered, recipe):
        console.print(part)
    raise typer.Exit(run_campaign(loaded, gathered, recipe, root, crew, console))


@app.command()
def validate(spec: SpecFile, mode: str | None = None) -> None:
    """Check a spec and everything it names, and print the plan. Starts nothing."""
    loaded, gathered, recipe = _prepared(spec, mode, None)
    for part in plan(loaded, gathered, recipe):
        console.print(part)


def main() -> None:
    """Entry point: bad input is one line and exit status 2."""
    try:
        app(standalone_mode=False)
    except DpstreamError as error:
        print(f"dpstream: {error}", file=sys.stderr)
        sys.exit(2)


def _prepared(path: Path, mode: str | None, name: str | None) -> tuple[Spec, Gathered, Recipe]:
    """Everything checked that can be checked before anything starts."""
    loaded = load_spec(path)
    changes = {key: value for key, value in (("mode", mode), ("name", name)) if value is not None}
    spec = Spec.model_validate({**loaded.model_dump(), **changes})
    recipe = make_recipe(spec.labels)
    return expand_material(spec), gather(spec, path.parent), recipe


def _parse_workers(text: str) -> dict[str, int]:
    crew = {"trainer": 1, "explorer": 1, "labeler": 1}
    for part in text.split(","):
        service, _, count = part.partition("=")
        if service.strip() not in crew or not count.strip().isdigit() or int(count) < 1:
            raise SpecError(
                f"--workers: {part!r}: expected trainer=N, explorer=N or labeler=N with N ≥ 1"
            )
        crew[service.strip()] = int(count)
    return crew


if __name__ == "__main__":
    main()
