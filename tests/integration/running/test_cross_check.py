"""Imported labels against the recipe, computed by the real code in its warm child."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from dpstream.inputs.gather import gather
from dpstream.running.check_here import compare
from dpstream.services.labeler.acceptance import AcceptanceLimits, Outcome, check_after
from dpstream.services.labeler.child import frame_facts
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import Frame, FrameLabel
from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.spec import Spec

LabelFrames = Callable[[list[Frame]], list[FrameLabel | str]]


def spec(method: str) -> Spec:
    return Spec.model_validate(
        {
            "name": "imported",
            "type_map": ["C", "H", "O"],
            "systems": {"methanol": {"structures": ["start.xyz"]}},
            "initial": {"data": ["set.extxyz"]},
            "stages": [{"name": "one", "systems": ["methanol"], "temperatures": [300]}],
            "labels": {"settings": {"method": method}},
        }
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildProcess]:
    child = ChildProcess("dpstream.services.labeler.child", tmp_path_factory.mktemp("engine"))
    yield child
    child.kill()


def labeller(engine: ChildProcess, wanted: Spec) -> LabelFrames:
    recipe = make_recipe(wanted.labels)

    def judged(frame: Frame) -> FrameLabel | str:
        outcome = _computed(engine, recipe.model_dump(mode="json"), frame)
        broken = check_after(frame, outcome, AcceptanceLimits.of(wanted.labels))
        return outcome.label() if broken is None else f"{broken.rule}: {broken.detail}"

    return lambda frames: [judged(frame) for frame in frames]


def _computed(engine: ChildProcess, recipe: dict[str, Any], frame: Frame) -> Outcome:
    arguments = {"recipe": recipe, "frames": [frame_facts(frame)]}
    (facts,) = engine.call("single_points", arguments, seconds=60)
    return Outcome.of(facts)


@pytest.fixture(scope="module")
def folder(engine: ChildProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rattled methanols labelled by GFN2-xTB, in the order in which ASE builds them."""
    path = tmp_path_factory.mktemp("data")
    molecule("CH3OH").write(path / "start.xyz")
    ase.io.write(path / "set.extxyz", [_labelled(engine, seed) for seed in range(8)])
    return path


def _labelled(engine: ChildProcess, seed: int) -> Atoms:
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=seed)
    frame = Frame(tuple(atoms.get_chemical_symbols()), atoms.positions)
    recipe = make_recipe(spec("GFN2-xTB").labels).model_dump(mode="json")
    outcome = _computed(engine, recipe, frame)
    assert outcome.forces is not None
    atoms.calc = SinglePointCalculator(atoms, energy=outcome.energies[0], forces=outcome.forces)
    return atoms


def test_data_of_the_same_recipe_passes(engine: ChildProcess, folder: Path) -> None:
    wanted = spec("GFN2-xTB")
    gathered = gather(wanted, folder)
    assert len(gathered.labelled) == 8
    compare(gathered, wanted, labeller(engine, wanted))


def test_data_of_another_recipe_is_refused(engine: ChildProcess, folder: Path) -> None:
    wanted = spec("GFN1-xTB")
    with pytest.raises(SpecError, match="forces of 5 recomputed frames differ from the recipe"):
        compare(gather(wanted, folder), wanted, labeller(engine, wanted))
