"""Charge, spin, moments and k-points of single systems: from the spec to the recipe of a frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from dpstream.commands.read_spec import prepared
from dpstream.inputs.gather import gather
from dpstream.inputs.label_inputs import with_label_inputs
from dpstream.inputs.systems import SystemStructures
from dpstream.services.labeler.recipes import make_recipe, recipe_for
from dpstream.shared.atoms.frames import Frame, canonical, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings, Spec, load_spec
from dpstream.shared.values import LabelInputs

HYDROXIDE = Frame(("H", "O"), np.array([[0, 0, 0.97], [0, 0, 0.0]]))


def spec(systems: dict[str, Any], **labels: Any) -> Spec:
    return Spec.model_validate(
        {
            "name": "demo",
            "type_map": ["H", "O", "Fe"],
            "systems": systems,
            "initial": {"perturb": {}},
            "stages": [{"name": "one", "systems": [*systems], "temperatures": [300]}],
            "labels": labels,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    ase.io.write(tmp_path / "oh.xyz", Atoms("OH", [[0, 0, 0], [0, 0, 0.97]]))
    oxide = Atoms("OFeOFe", np.diag(range(4)) @ np.ones((4, 3)), cell=np.eye(3) * 8, pbc=True)
    ase.io.write(tmp_path / "feo.vasp", oxide, format="vasp", sort=False)
    ase.io.write(tmp_path / "sorted.vasp", oxide, format="vasp", sort=True)
    return tmp_path


def written_out(wanted: Spec, folder: Path) -> Spec:
    return with_label_inputs(wanted, SystemStructures(wanted, folder))


def test_each_composition_has_a_recipe_of_its_own(folder: Path) -> None:
    ionic = {"structures": ["oh.xyz"], "label": {"charge": -1}}
    whole = written_out(spec({"w": {"structures": ["water.xyz"]}, "oh": ionic}), folder)
    assert whole.labels.compositions == {"H1O1": LabelInputs(charge=-1)}
    assert all(system.label is None for system in whole.systems.values())
    assert written_out(whole, folder) == whole
    recipe = make_recipe(whole.labels)
    water = canonical(from_ase(molecule("H2O"))).frame
    own = recipe_for(recipe, HYDROXIDE)
    assert (own.charge, own.compositions) == (-1, {})
    # The labels are those of campaigns with this charge alone, or with none at all.
    assert own.digest == make_recipe(LabelSettings(charge=-1)).digest
    assert recipe_for(recipe, water).digest == make_recipe(LabelSettings()).digest
    assert len({own.digest, recipe.digest, make_recipe(LabelSettings()).digest}) == 3


def test_the_lowest_multiplicity_is_that_of_the_electrons() -> None:
    recipe = make_recipe(LabelSettings(multiplicity=0))
    assert recipe_for(recipe, HYDROXIDE).multiplicity == 2
    assert recipe_for(recipe.model_copy(update={"charge": -1}), HYDROXIDE).multiplicity == 1
    assert recipe_for(recipe, HYDROXIDE).digest == make_recipe(LabelSettings(multiplicity=2)).digest


def test_odd_electrons_need_their_multiplicity_in_the_spec(folder: Path) -> None:
    radical = {"structures": ["oh.xyz"]}
    with pytest.raises(SpecError, match="electron-parity"):
        gather(spec({"oh": radical}), folder)
    by_label = written_out(spec({"oh": {**radical, "label": {"multiplicity": 2}}}), folder)
    assert gather(by_label, folder).systems.keys() == {"oh"}


def test_kpoints_stand_in_the_settings_as_if_given_there() -> None:
    settings = {"fdf": "MeshCutoff 300 Ry", "potentials": {"Fe": "Fe", "O": "O"}}
    stated = {"sha256": {"Fe": "0" * 16, "O": "1" * 16}}
    labels = {"code": "siesta", "settings": {**settings, **stated}}
    inputs = {"Fe2O2": {"kpoints": [4, 4, 2]}}
    recipe = make_recipe(LabelSettings(**labels, compositions=inputs))
    frame = Frame(("Fe", "Fe", "O", "O"), np.zeros((4, 3)), np.eye(3) * 8)
    given = LabelSettings(**{**labels, "settings": {**settings, **stated, "kpoints": [4, 4, 2]}})
    assert recipe_for(recipe, frame).digest == make_recipe(given).digest


SETTINGS = {
    "incar": "KSPACING = 0.3\n",
    "potentials": {"Fe": "Fe", "O": "O"},
    "sha256": {"Fe": "0" * 16, "O": "1" * 16},
}


@pytest.mark.parametrize(
    ("magmom", "expected"),
    [({"Fe": 2.5}, (2.5, 2.5, 0.0, 0.0)), ([0.1, 2.0, -0.1, -2.0], (2.0, -2.0, 0.1, -0.1))],
)
def test_moments_follow_the_atoms(folder: Path, magmom: Any, expected: tuple[float, ...]) -> None:
    system = {"structures": ["feo.vasp"], "label": {"magmom": magmom}}
    whole = written_out(spec({"feo": system}, code="vasp", settings=SETTINGS), folder)
    assert whole.labels.compositions["Fe2O2"].magmom == expected


@pytest.mark.parametrize(
    ("systems", "words"),
    [
        (
            {
                "a": {"structures": ["oh.xyz"], "label": {"charge": -1}},
                "b": {"structures": ["oh.xyz"]},
            },
            ["systems.b.label", "H1O1", "systems.a.label"],
        ),
        (
            {"a": {"structures": ["feo.vasp"], "label": {"magmom": [1.0]}}},
            ["systems.a.label.magmom", "1 moments", "4 atoms"],
        ),
        (
            {"a": {"structures": ["feo.vasp"], "label": {"magmom": {"H": 1.0}}}},
            ["systems.a.label.magmom", "H is not in Fe2O2"],
        ),
        (
            {
                "a": {
                    "structures": ["feo.vasp", "sorted.vasp"],
                    "label": {"magmom": [0, 1, 0, -1]},
                }
            },
            ["systems.a.label.magmom", "sorted.vasp", "different order"],
        ),
        (
            {"a": {"structures": ["oh.xyz"], "label": {"multiplicity": 2}}},
            ["systems.a.label.multiplicity", "vasp does not support it"],
        ),
    ],
)
def test_inputs_that_do_not_fit(folder: Path, systems: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as raised:
        written_out(spec(systems, code="vasp", settings=SETTINGS), folder)
    for word in words:
        assert word in str(raised.value)


def test_a_file_named_in_the_settings_is_part_of_the_recipe(folder: Path) -> None:
    document = spec({"w": {"structures": ["water.xyz"]}}).model_dump_json(exclude_unset=True)
    labels = '"labels":{"code":"gaussian","settings":{"keywords":{"file":"route"}}}'
    path = folder / "campaign.json"
    path.write_text(document.replace('"labels":{}', labels))
    (folder / "route").write_text("force pbepbe/6-31g\n")
    loaded = load_spec(path)
    assert loaded.labels.settings == {"keywords": "force pbepbe/6-31g\n"}
    with pytest.raises(SpecError, match=r"gaussian: g16: no such program on this machine"):
        prepared(path, None, None)
    (folder / "route").unlink()
    with pytest.raises(SpecError, match=r"labels.settings.keywords: .*route: cannot be read"):
        load_spec(path)
    (folder / "route").write_bytes(b"x" * 40_000)
    with pytest.raises(SpecError, match=r"40000 bytes; at most 32768"):
        load_spec(path)
