"""Reads and checks a spec with all that it names, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from dpstream.dpgen.load import load_campaign
from dpstream.dpgen.machines.here import MachineFile, adopt
from dpstream.dpgen.machines.pools import Labels
from dpstream.inputs.check_installed import (
    check_class,
    check_engines,
    check_program,
    gromacs_is_here,
    gromacs_program,
)
from dpstream.inputs.check_training import deepmd_is_here
from dpstream.inputs.gather import Gathered, gather
from dpstream.inputs.label_inputs import with_label_inputs
from dpstream.inputs.systems import SystemStructures
from dpstream.services.explorer.gromacs.trial import try_inputs
from dpstream.services.labeler.recipes import (
    make_recipe,
    program_of,
    read_files,
    unknown_here,
)
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import Spec, expand_material
from dpstream.shared.spec.engines import Gromacs
from dpstream.shared.spec.errors import validated
from dpstream.shared.values import Recipe
from dpstream.terminal.console import notes, print_line
from dpstream.terminal.progress import at_work

SUBMIT_ONLY = "this machine can submit the campaign, not run it"


def prepared(
    path: Path,
    mode: str | None,
    name: str | None,
    engines: bool | None = True,
    code: str | None = None,
    machine: MachineFile | None = None,
) -> tuple[Spec, Gathered, Recipe]:
    """Read and check the spec at `path` with all that it names, before anything starts.

    `mode`, `name` and `code` override the spec; `engines`: whether they must be installed on this
    machine, None: if they are not, that is a warning; `machine`: DP-GEN's, of which it says what
    this machine uses. Raises `SpecError` with one line naming file and key.
    """
    with at_work(f"reading {path}"):
        return _prepared(path, mode, name, engines, code, machine)


def _prepared(
    path: Path,
    mode: str | None,
    name: str | None,
    engines: bool | None,
    code: str | None,
    machine: MachineFile | None,
) -> tuple[Spec, Gathered, Recipe]:
    overrides = {k: value for k, value in (("mode", mode), ("name", name)) if value is not None}
    machines = () if machine is None else machine.machines
    loaded = load_campaign(path, code, name, machines, partial(print_line, notes))
    if machine is not None:
        # Workers that join a deployment would start the command for campaigns of others, too.
        is_own = code is None and engines is not False
        print_line(notes, adopt(machine, Labels(loaded.labels.code, is_own)))
    spec = validated(Spec, {**loaded.model_dump(), **overrides}, "--")
    with errors_at(str(path), SpecError):
        return checked(spec, path.parent, engines)


def checked(
    spec: Spec,
    folder: Path,
    engines: bool | None = True,
    given: Mapping[str, Sequence[Frame]] = MappingProxyType({}),
) -> tuple[Spec, Gathered, Recipe]:
    """Read and check everything that `spec` names, relative to `folder`. `given`: structures, by
    system, that have already been read."""
    labels, attachments = read_files(spec.labels, folder)
    structures = SystemStructures(spec, folder, given)
    spec = with_label_inputs(spec.model_copy(update={"labels": labels}), structures)
    recipe = make_recipe(spec.labels, version_needed=bool(engines))
    elsewhere = engines is False
    if not elsewhere:
        check_class(recipe)
    missing = None if elsewhere else _missing(spec, recipe)
    if missing is not None and engines:
        raise missing
    gathered = gather(spec, folder, elsewhere, structures)
    if not elsewhere and gromacs_is_here():
        try_inputs(spec, gathered.systems, gromacs_program())
    if missing is not None:
        gathered.warnings.append(f"{SUBMIT_ONLY}: {missing}")
    if not engines:
        gathered.warnings.extend(_left(spec, recipe))
    return expand_material(spec), replace(gathered, attachments=attachments), recipe


def _left(spec: Spec, recipe: Recipe) -> Iterator[str]:
    """What the workers of a deployment check, for want of the programs here."""
    left = []
    if (why := unknown_here(spec.labels)) is not None:
        left.append(f"the version of {program_of(recipe)} ({why})")
    if not deepmd_is_here():
        left.append("training.input (no DeePMD-kit here)")
    if any(isinstance(stage.engine, Gromacs) for stage in spec.stages) and not gromacs_is_here():
        left.append("the atoms of topologies and structures (no GROMACS here)")
    if left:
        yield f"checked by the workers: {', '.join(left)}"


def _missing(spec: Spec, recipe: Recipe) -> SpecError | None:
    """The first thing that this machine lacks to run the campaign."""
    try:
        check_engines(spec)
        check_program(recipe)
    except SpecError as error:
        return error
    return None
