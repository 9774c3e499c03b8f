"""DP-GEN's parameters for initial data, and the structures they mean."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.initial.params import InitBulk, InitSurf, read_params
from dpstream.initial.structures import bulk_cell, gaps, surface_cells, variants, widened
from dpstream.shared.errors import SpecError

BULK = {
    "stages": [1, 2, 3, 4],
    "elements": ["Al"],
    "cell_type": "fcc",
    "latt": 4.05,
    "super_cell": [2, 1, 1],
    "scale": [0.98, 1.0],
    "skip_relax": False,
    "pert_numb": 2,
    "pert_box": 0.03,
    "pert_atom": 0.1,
    "md_nstep": 3,
    "coll_ndata": 100,
}
SURF = {
    **{k: v for k, v in BULK.items() if k != "md_nstep"},
    "super_cell": [1, 2, 1],
    "millers": [[1, 0, 0], [1, 1, 1]],
    "z_min": 5,
    "vacuum_max": 9.0,
    "vacuum_resol": [0.5, 1],
    "mid_point": 4.0,
}


def given(folder: Path, document: Any, kind: type[Any]) -> Any:
    path = folder / "param.json"
    path.write_text(json.dumps(document))
    return read_params(path, kind)


def test_the_real_files_are_understood(tmp_path: Path) -> None:
    data = os.environ.get("DPSTREAM_TEST_DATA")
    if data is None:
        pytest.skip("DPSTREAM_TEST_DATA is not set: no files of DP-GEN")
    folder = Path(data) / "dpgen" / "examples" / "init"
    bulk, unused = read_params(folder / "al.json", InitBulk)
    assert (bulk.pert_numb, bulk.md_nstep, bulk.from_poscar_path) == (30, 10, "al.POSCAR")
    assert [line.split(":")[0] for line in unused] == ["potcars", "relax_incar", "md_incar"]
    surf, _ = read_params(folder / "surf.json", InitSurf)
    assert len(surf.millers) == 3
    assert gaps(surf)[:2] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pert_nubm": 3}, "pert_nubm: unknown key; did you mean 'pert_numb'?"),
        ({"pert_box": 3}, "pert_box: 3: must be less than 0.5"),
        ({"latt": None}, "cell_type and latt: missing; required unless from_poscar is true"),
        ({"elements": ["Al", "Mg"]}, "elements: 2 elements in one cell_type"),
        ({"from_poscar": True}, "from_poscar_path: missing"),
        ({"cell_type": "fc"}, "cell_type: 'fc': must be 'fcc'"),
    ],
)
def test_wrong_parameters_are_one_line(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SpecError) as caught:
        given(tmp_path, {**BULK, **changes}, InitBulk)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "param.json"))


@pytest.mark.parametrize(
    ("absent", "problem"),
    [
        ("z_min", "layer_numb or z_min"),
        ("mid_point", "mid_point: missing; required"),
        ("millers", "missing"),
    ],
)
def test_a_surface_needs_its_own(tmp_path: Path, absent: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        given(tmp_path, {k: v for k, v in SURF.items() if k != absent}, InitSurf)


def test_a_poscar_that_is_not_there(tmp_path: Path) -> None:
    document = {**BULK, "from_poscar": True, "from_poscar_path": "no.POSCAR"}
    params, _ = given(tmp_path, document, InitBulk)
    with pytest.raises(SpecError, match=r"from_poscar_path: .*no.POSCAR: no such file"):
        bulk_cell(params, tmp_path)


def test_each_scale_comes_plain_and_perturbed(tmp_path: Path) -> None:
    params, _ = given(tmp_path, BULK, InitBulk)
    cell = bulk_cell(params, tmp_path)
    assert cell.formula == "Al8"
    made = list(variants(cell, params, 0.5, "bulk"))
    names = ["scale 0.98", "scale 0.98, copy 1", "scale 0.98, copy 2"]
    assert [name for name, _ in made][:3] == names
    assert len(made) == 6
    volumes = [float(np.linalg.det(frame.cell)) for _, frame in made if frame.cell is not None]
    assert volumes[0] == pytest.approx(volumes[3] * 0.98**3, rel=1e-5)
    assert len({round(volume, 3) for volume in volumes}) == 6
    again = [frame.positions.tolist() for _, frame in variants(cell, params, 0.5, "bulk")]
    assert again == [frame.positions.tolist() for _, frame in made]


@pytest.mark.slow
def test_atoms_that_always_come_too_close(tmp_path: Path) -> None:
    params, _ = given(tmp_path, BULK, InitBulk)
    with pytest.raises(SpecError, match=r"pert_atom: 0.1 Å keeps bringing atoms closer"):
        list(variants(bulk_cell(params, tmp_path), params, 4.0, "bulk"))


def test_slabs_by_miller_index_repeated_and_pulled_apart(tmp_path: Path) -> None:
    params, _ = given(tmp_path, SURF, InitSurf)
    cells = surface_cells(params, tmp_path)
    assert list(cells) == ["100", "111"]
    slab = cells["100"]
    assert slab.cell is not None
    assert np.ptp(slab.positions[:, 2]) >= 4.0
    wide = widened(slab, 3.0)
    assert wide.cell is not None
    assert wide.cell[2, 2] == pytest.approx(slab.cell[2, 2] + 3.0)
    assert np.ptp(wide.positions[:, 2]) == pytest.approx(np.ptp(slab.positions[:, 2]), abs=1e-5)
    assert wide.positions[:, 2].mean() == pytest.approx(wide.cell[2, 2] / 2, abs=1e-5)


def test_gaps_are_fine_at_first_and_coarse_later() -> None:
    common: dict[str, Any] = {**SURF, "vacuum_max": 6.0}
    two = InitSurf.model_validate(common)
    assert gaps(two) == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0]
    one = InitSurf.model_validate({**common, "vacuum_resol": [2.0]})
    assert gaps(one) == [2.0, 4.0]
    counted = {**common, "vacuum_resol": [], "vacuum_numb": 5, "head_ratio": 0.6}
    assert gaps(InitSurf.model_validate(counted)) == [0.0, 2.0, 4.0, 5.0, 6.0]
