"""Lets GROMACS read the inputs of a campaign's stages before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dpstream.services.explorer.engines.gromacs import gromacs_inputs, prepare
from dpstream.services.explorer.gromacs.inputs import Misfit
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import errors_at
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.spec import Spec, Stage
from dpstream.shared.spec.engines import Gromacs

CHILD = "dpstream.services.explorer.gromacs.child"


def try_inputs(spec: Spec, systems: Mapping[str, Sequence[Frame]], program: str) -> None:
    """Prepares a trajectory of each system and condition of the stages with GROMACS, from the first
    structure of each composition. `program`: that of GROMACS. Raises `SpecError` with what GROMACS
    says."""
    stages = [(n, each) for n, each in enumerate(spec.stages) if isinstance(each.engine, Gromacs)]
    if not stages:
        return
    with private_folder(None) as scratch:
        child = ChildProcess(CHILD, scratch / "engine")
        try:
            for number, stage in stages:
                call = partial(_call, child, program, scratch)
                _try(f"stages.{number}.engine", spec, stage, systems, call, scratch)
        finally:
            child.kill()


def _try(
    key: str,
    spec: Spec,
    stage: Stage,
    systems: Mapping[str, Sequence[Frame]],
    call: Callable[..., Any],
    folder: Path,
) -> None:
    assert isinstance(stage.engine, Gromacs)
    for condition in stage.conditions():
        with errors_at(f"{key}: {condition}", ValueError):
            for frame in _compositions(systems[condition.system]):
                vacuum = frame.cell is None
                inputs = gromacs_inputs(stage.engine, stage.md, condition, vacuum, 0)
                with _about_gro(spec.systems[condition.system].structures):
                    prepare(stage.engine, inputs, frame, folder, call)


def _compositions(frames: Sequence[Frame]) -> list[Frame]:
    """The first frame of each composition."""
    return list({frame.species: frame for frame in reversed(frames)}.values())[::-1]


@contextmanager
def _about_gro(structures: Sequence[str]) -> Iterator[None]:
    """Adds to a `Misfit` where the elements of structures come from."""
    try:
        yield
    except Misfit as error:
        if any(name.endswith(".gro") for name in structures):
            hint = "elements in .gro files are read from the names of atoms: write Cl, not CL"
            raise ValueError(f"{error} ({hint})") from error
        raise


def _call(child: ChildProcess, program: str, folder: Path, operation: str, **arguments: Any) -> Any:
    return child.call(operation, {"program": program, "folder": str(folder), **arguments})
