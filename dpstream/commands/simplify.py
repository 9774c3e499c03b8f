"""`dpstream simplify`: reduces a dataset to the frames that a committee needs.

The dataset becomes the only system of a lockstep campaign with the `frames` engine
(`dpstream.simplify.campaign`), which runs like any other; afterwards the frames left out are
measured (`dpstream.simplify.remainder`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dpstream.commands.import_dpgen import key_table
from dpstream.commands.options import (
    DEFAULT_ROOT,
    Code,
    CrossCheck,
    NewName,
    Root,
    parse_workers,
    within,
)
from dpstream.commands.read_spec import checked
from dpstream.commands.run.local import run_campaign
from dpstream.dpgen.key_table import without_comments
from dpstream.dpgen.load import named_after
from dpstream.dpgen.machines.here import adopt, read_here, with_program
from dpstream.dpgen.machines.pools import Labels
from dpstream.dpgen.param import Places
from dpstream.dpgen.simplify import is_simplify, read_simplify
from dpstream.export.results import CampaignResults
from dpstream.inputs.gather import Gathered
from dpstream.running.connection import is_folder
from dpstream.running.first_checks import FirstChecks
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import Spec, TrustLevels
from dpstream.shared.spec.errors import read_document
from dpstream.shared.spec.inline_files import with_texts
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Recipe
from dpstream.simplify.campaign import SYSTEM, campaign, own_labels
from dpstream.simplify.pool import SimplifyPool, read_pool
from dpstream.simplify.remainder import measure
from dpstream.terminal.console import console, notes, print_line
from dpstream.terminal.interrupt import INTERRUPTED

SETTINGS = (".json", ".yaml", ".yml")
WORKERS = {"trainer": 2, "explorer": 1, "labeler": 1}
QUANTITIES = ("energy", "forces", "virial", "stress")
CREW = ",".join(f"{service}={count}" for service, count in WORKERS.items())


def simplify(
    dataset: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET...",
            help="Labelled sets (DeePMD-kit folders or HDF5, extxyz, outputs of labeling codes); "
            "with labels.code in --spec also unlabelled frames in any format of ASE or dpdata. Or "
            "DP-GEN's simplify param.json and machine.json.",
        ),
    ],
    spec: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Sections of a campaign spec: training, trust, selection, initial.pick, labels… "
            "With labels.code, that code labels the frames; otherwise the dataset's labels are "
            "used.",
        ),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="LIST", help="Workers of each service on this machine.")
    ] = CREW,
    columns: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Names of the numbers in DATASET: energy=REF_energy,forces=REF_forces; virial or "
            "stress too.",
        ),
    ] = "",
    root: Root = DEFAULT_ROOT,
    name: NewName = None,
    code: Code = None,
    cross_check: CrossCheck = True,
) -> None:
    """Reduce a dataset to the frames that a committee needs (DP-GEN's simplify).

    A committee is trained on a few random frames and judges all others. In each round some of the
    frames on which it disagrees are labelled and added to the training set, until no candidate is
    left. Models, the reduced dataset and a report are written to DIR/NAME. After Ctrl-C, run the
    same command to continue; only work in progress is lost.

    Exit status: 0 no candidate is left, 1 candidates are left, 2 bad input, 130 interrupted.

    Example: dpstream simplify aimd.extxyz --spec small.yaml
    """
    crew = {**WORKERS, **parse_workers(workers, tuple(WORKERS), least=1)}
    if not is_folder(root):
        raise SpecError(f"--store: {root}: must be a folder on this machine for simplify")
    options = replace(_options(dataset, spec, name, code), columns=parse_columns(columns))
    loaded, gathered, recipe, pool = _prepared(options)
    for report in pool.reports:
        print_line(notes, str(report))
    with within(root):
        store = FolderStore(Path(root))
        pool.keep_labels(store, recipe, options.sources)
        checks = FirstChecks(spec or Path(options.sources[0]), cross_check, False)
        status = run_campaign(loaded, gathered, recipe, checks, Path(root), crew, console)
        folder = Path(root) / loaded.name
        if status != INTERRUPTED and folder.is_dir():
            _report_left_out(loaded, pool, store, folder)
    raise typer.Exit(status)


@dataclass(frozen=True)
class SimplifyOptions:
    """What to simplify and how. File names are relative to `folder`; errors name `where`."""

    settings: Mapping[str, Any]
    sources: Sequence[str]
    folder: Path
    name: str
    where: str
    columns: Mapping[str, str] = field(default_factory=dict)


def parse_columns(text: str) -> dict[str, str]:
    """Names by quantity from `energy=REF_energy,forces=REF_forces`. Raises `SpecError`."""
    names: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        quantity, _, name = (piece.strip() for piece in part.partition("="))
        if quantity not in QUANTITIES or not name:
            raise SpecError(f"--columns: {part!r}: must be {'=NAME, '.join(QUANTITIES)}=NAME")
        names[quantity] = name
    return names


def _options(
    dataset: Sequence[str], spec: Path | None, name: str | None, code: str | None
) -> SimplifyOptions:
    first = Path(dataset[0])
    if first.suffix in SETTINGS:
        return _of_dpgen(dataset, spec, name, code)
    if code is not None:
        raise SpecError(
            "--code: allowed only with DP-GEN's param.json; give labels.code in a --spec instead"
        )
    if spec is None:
        return SimplifyOptions({}, dataset, Path(), name or _default_name(first), "DATASET")
    settings = with_texts(read_document(spec), spec)
    sources = [str(Path(source).absolute()) for source in dataset]
    own = str(settings.get("name", _default_name(first)))
    return SimplifyOptions(settings, sources, spec.parent, name or own, str(spec))


def _of_dpgen(
    dataset: Sequence[str], spec: Path | None, name: str | None, code: str | None
) -> SimplifyOptions:
    param = Path(dataset[0])
    document = without_comments(read_document(param))
    if not is_simplify(document):
        raise SpecError(
            f"{param}: not a param.json of `dpgen simplify`: the key pick_data is missing"
        )
    if spec is not None:
        raise SpecError(f"--spec: not allowed together with {param}, which has all settings")
    if len(dataset) > 2:
        raise SpecError(f"{dataset[2]}: unexpected; only a machine.json may follow param.json")
    with errors_at(str(param), SpecError):
        converted = read_simplify(document, param.parent, code)
    console.print(key_table(str(param), converted.lines))
    for text in converted.differences:
        print_line(console, f"differs from DP-GEN: {text}")
    name, labels = name or _default_name(param), converted.settings["labels"]
    machine = read_here(Path(dataset[1])) if len(dataset) == 2 else None
    settings = converted.settings
    if labels:
        machines = () if machine is None else machine.machines
        place = Places(param.parent, param.parent).place
        own, _ = with_program({"name": name, "labels": labels}, machines, param.parent, place)
        settings = {**settings, "labels": own["labels"]}
    if machine is not None:
        is_own = bool(labels) and code is None
        print_line(console, adopt(machine, Labels(labels.get("code", ""), is_own)))
    return SimplifyOptions(settings, converted.sources, param.parent, name, str(param))


def _default_name(path: Path) -> str:
    return f"{named_after(path)[:50]}-simplified"


def _prepared(options: SimplifyOptions) -> tuple[Spec, Gathered, Recipe, SimplifyPool]:
    """Read and check the dataset and the campaign made of it, before anything starts."""
    own = own_labels(options.settings)
    type_map = options.settings.get("type_map", ())
    pool = read_pool(options.sources, options.folder, type_map, own, options.columns)
    with errors_at(options.where, SpecError):
        spec = campaign(options.settings, options.name, options.sources, pool)
        given = {SYSTEM: list(pool.frames.values())}
        loaded, gathered, recipe = checked(spec, options.folder, given=given)
    imported = (*gathered.imported, *(report.record for report in pool.reports))
    return loaded, replace(gathered, imported=imported), recipe, pool


def _report_left_out(spec: Spec, pool: SimplifyPool, store: FolderStore, folder: Path) -> None:
    assert isinstance(spec.trust, TrustLevels)
    converted = measure(CampaignResults.of(store, spec.name), pool, spec.trust.values(), folder)
    if converted is not None:
        print_line(console, str(converted))
