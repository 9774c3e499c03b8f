"""The structures of the properties that a spec names: made, checked, counted and submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.build import bulk, molecule
from rich.table import Table

from dpstream.commands.read_spec import prepared
from dpstream.inputs import systems
from dpstream.inputs.gather import gather
from dpstream.inputs.reading.ase_files import read_ase
from dpstream.running.submit import submit
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import Batch, canonical, frame_key
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec, load_spec
from dpstream.shared.store.folder import FolderStore
from dpstream.terminal.plan import plan

EMT = {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}}


def wanted(*properties: str, system: str = "al") -> dict[str, Any]:
    each = [{"property": name, "system": system, "tolerance": 0.05} for name in properties]
    return {"reference_md": None, "properties": each}


def document(*properties: str, **sections: Any) -> dict[str, Any]:
    return {
        "name": "props",
        "type_map": ["Al"],
        "systems": {"al": {"structures": ["al.vasp"]}},
        "initial": {"perturb": {"copies": 3}},
        "stages": [{"name": "warm", "systems": ["al"], "temperatures": [300]}],
        "labels": EMT,
        "verification": wanted(*properties),
        **sections,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bulk("Al", cubic=True).write(tmp_path / "al.vasp")
    molecule("H2").write(tmp_path / "h2.xyz")
    return tmp_path


def test_they_are_canonical_shared_and_submitted(folder: Path) -> None:
    spec = Spec.model_validate(document("volume", "bulk-modulus", "elastic", "vacancy"))
    gathered = gather(spec, folder)
    assert [len(frames) for frames in gathered.points] == [7, 7, 13, 2]
    keys = [[frame_key(frame) for frame in frames] for frames in gathered.points]
    assert keys[0] == keys[1]
    assert keys[0][3] == keys[2][0] == keys[3][0], "the structure itself"
    assert gathered.measured == 7 + 12 + 1
    assert gathered.first == 3 + gathered.measured
    for frame in (frame for frames in gathered.points for frame in frames):
        assert frame_key(canonical(frame).frame) == frame_key(frame)
    store = FolderStore(folder / "store")
    event = submit(spec, gathered, make_recipe(spec.labels), store, 0.0)
    assert [[ref.key for ref in refs] for refs in event.points] == keys
    ref = event.points[2][5]
    stored = Batch.loads(store.get(ref.batch.uri))[ref.index]
    assert frame_key(stored) == ref.key


def test_they_are_in_the_plan(folder: Path) -> None:
    spec = Spec.model_validate(document("elastic"))
    parts = plan(spec, gather(spec, folder), make_recipe(spec.labels))
    facts = [part for part in parts if isinstance(part, Table)][-1]
    said = " ".join(str(cell) for cell in facts.columns[1].cells)
    assert "elastic of al within 5 %" in said
    assert "3 initial + 13 for properties" in said


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {
                "type_map": ["H"],
                "systems": {"al": {"structures": ["h2.xyz"]}},
                "verification": wanted("elastic"),
            },
            "verification.properties.0: elastic of al: H2 has no cell",
        ),
        (
            {
                "systems": {"al": {"structures": ["primitive.vasp"]}},
                "verification": wanted("volume", "vacancy"),
            },
            "verification.properties.1: vacancy of al: Al1 is too small for a vacancy; "
            "give a supercell",
        ),
        (
            {"labels": {**EMT, "min_distance": 2.85}},
            "verification.properties.0: Al4 cannot be labelled (min-distance)",
        ),
        (
            {"budget": {"labels": 9}},
            "budget.labels: 9 is less than the 10 initial frames to label; raise it to 10",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    folder: Path, sections: dict[str, Any], problem: str
) -> None:
    bulk("Al").write(folder / "primitive.vasp")
    with pytest.raises(SpecError) as caught:
        gather(Spec.model_validate(document("volume", **sections)), folder)
    assert str(caught.value).startswith(problem)


def test_a_system_that_is_none(folder: Path) -> None:
    (folder / "c.yaml").write_text(
        yaml.safe_dump(document(verification=wanted("volume", system="all")))
    )
    with pytest.raises(SpecError, match=r"properties.0.system: 'all' is not in systems"):
        load_spec(folder / "c.yaml")


def test_structures_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though label inputs go by their compositions and starting points are made of them."""
    read: list[Path] = []

    def counted(path: Path) -> list[Any]:
        read.append(path)
        return read_ase(path)

    monkeypatch.setattr(systems, "read_ase", counted)
    system = {"structures": ["h2.xyz"], "label": {"multiplicity": 1}}
    stage = {"name": "warm", "systems": ["h2"], "temperatures": [300]}
    sections = {
        "type_map": ["H"],
        "systems": {"h2": system},
        "stages": [stage],
        "labels": {"code": "tblite"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(document(**sections)))
    prepared(folder / "c.yaml", None, None, engines=False)
    assert [path.name for path in read] == ["h2.xyz"]
