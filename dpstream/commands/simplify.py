"""`dpstream simplify`: subsample a dataset by committee deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dpstream.commands.import_dpgen import key_table, said_of_machine
from dpstream.commands.options import (
    DEFAULT_ROOT,
    Code,
    NewName,
    Root,
    checked,
    parse_workers,
    within,
)
from dpstream.commands.run_local import run_campaign
from dpstream.dpgen.key_table import without_comments
from dpstream.dpgen.load import named_after
from dpstream.dpgen.simplify import is_simplify, read_simplify
from dpstream.export.results import CampaignResults
from dpstream.inputs.gather import Gathered
from dpstream.running.connection import is_folder
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec, TrustLevels
from dpstream.shared.spec.errors import read_document
from dpstream.shared.spec.inline_files import with_texts
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Recipe
from dpstream.simplify.campaign import SYSTEM, campaign, own_labels
from dpstream.simplify.pool import SimplifyPool, read_pool
from dpstream.simplify.remainder import measure
from dpstream.terminal.console import console, say
from dpstream.terminal.interrupt import INTERRUPTED

SETTINGS = (".json", ".yaml", ".yml")
WORKERS = {"trainer": 2, "explorer": 1, "labeler": 1}
CREW = ",".join(f"{service}={count}" for service, count in WORKERS.items())


def simplify(
    dataset: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET...",
            help="Labelled sets (DeePMD-kit folders or HDF5, extxyz, OUTCAR) or, where a --spec "
            "says how to label, frames in any format of ASE or dpdata. Or DP-GEN's simplify "
            "param.json, and machine.json.",
        ),
    ],
    spec: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Sections of a campaign spec: training, trust, selection, initial.pick, labels… "
            "With labels.code, frames are labelled by it; without, labels are the dataset's own.",
        ),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="LIST", help="Workers of each service here.")
    ] = CREW,
    root: Root = DEFAULT_ROOT,
    name: NewName = None,
    code: Code = None,
) -> None:
    """Find the part of a dataset that a committee needs (DP-GEN's simplify).

    A committee is trained on a few frames drawn at random, judges all others, and those on which it
    disagrees are labelled and trained on, some each round, until no candidate is left. Models, the
    reduced dataset and a report end up in DIR/NAME. Ctrl-C loses only the work in flight; the same
    command goes on.

    Exit status: 0 no candidate is left, 1 not so, 2 bad input, 130 interrupted.

    Example: dpstream simplify aimd.extxyz --spec small.yaml
    """
    crew = {**WORKERS, **parse_workers(workers, tuple(WORKERS), least=1)}
    if not is_folder(root):
        raise SpecError(f"--root: {root}: simplify works in a folder here")
    asked = _asked(dataset, spec, name, code)
    loaded, gathered, recipe, pool = _prepared(asked)
    with within(root):
        store = FolderStore(Path(root))
        pool.keep_labels(store, recipe, asked.sources)
        status = run_campaign(loaded, gathered, recipe, Path(root), crew, console)
        folder = Path(root) / loaded.name
        if status != INTERRUPTED and folder.is_dir():
            _tell(loaded, pool, store, folder)
    raise typer.Exit(status)


@dataclass(frozen=True)
class SimplifyOptions:
    """What to simplify, names relative to `folder`, and how; errors are those of `where`."""

    settings: Mapping[str, Any]
    sources: Sequence[str]
    folder: Path
    name: str
    where: str


def _asked(
    dataset: Sequence[str], spec: Path | None, name: str | None, code: str | None
) -> SimplifyOptions:
    first = Path(dataset[0])
    if first.suffix in SETTINGS:
        return _of_dpgen(dataset, spec, name, code)
    if code is not None:
        raise SpecError("--code: goes with DP-GEN's param.json; give a --spec with labels.code")
    if spec is None:
        return SimplifyOptions({}, dataset, Path(), name or _named(first), "DATASET")
    settings = with_texts(read_document(spec), spec)
    sources = [str(Path(source).absolute()) for source in dataset]
    own = str(settings.get("name", _named(first)))
    return SimplifyOptions(settings, sources, spec.parent, name or own, str(spec))


def _of_dpgen(
    dataset: Sequence[str], spec: Path | None, name: str | None, code: str | None
) -> SimplifyOptions:
    param = Path(dataset[0])
    document = without_comments(read_document(param))
    if not is_simplify(document):
        raise SpecError(f"{param}: has no pick_data: is no param file of DP-GEN's simplify")
    if spec is not None:
        raise SpecError(f"--spec: not with {param}, which says it all")
    if len(dataset) > 2:
        raise SpecError(f"{dataset[2]}: after param.json comes at most a machine.json")
    try:
        found = read_simplify(document, param.parent, code)
    except SpecError as error:
        raise SpecError(f"{param}: {error}") from error
    console.print(key_table(str(param), found.lines))
    for text in found.differences:
        say(console, f"not as in DP-GEN: {text}")
    if len(dataset) == 2:
        say(console, said_of_machine(Path(dataset[1])))
    return SimplifyOptions(
        found.settings, found.sources, param.parent, name or _named(param), str(param)
    )


def _named(path: Path) -> str:
    return f"{named_after(path)[:50]}-simplified"


def _prepared(asked: SimplifyOptions) -> tuple[Spec, Gathered, Recipe, SimplifyPool]:
    """Everything checked that can be checked before anything starts."""
    own = own_labels(asked.settings)
    type_map = asked.settings.get("type_map", ())
    pool = read_pool(asked.sources, asked.folder, type_map, own)
    try:
        spec = campaign(asked.settings, asked.name, asked.sources, pool)
        given = {SYSTEM: list(pool.frames.values())}
        return (*checked(spec, asked.folder, given=given), pool)
    except SpecError as error:
        raise SpecError(f"{asked.where}: {error}") from error


def _tell(spec: Spec, pool: SimplifyPool, store: FolderStore, folder: Path) -> None:
    assert isinstance(spec.trust, TrustLevels)
    found = measure(CampaignResults.of(store, spec.name), pool, spec.trust.values(), folder)
    if found is not None:
        say(console, str(found))
