"""Clusters of molecules cut from periodic frames."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from dpstream.inputs.gather import gather
from dpstream.services.explorer.selection.clusters import centres, cluster
from dpstream.shared.atoms.frames import Frame, canonical, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec

WIDTH = 12.0


def methanes(*places: tuple[float, float, float]) -> Frame:
    """CH₄ molecules with their carbon atoms at `places`, in a cubic cell."""
    atoms = Atoms(cell=[WIDTH] * 3, pbc=True)
    for place in places:
        one = molecule("CH4")
        one.positions += np.array(place) - one.positions[0]
        atoms += one
    return canonical(from_ase(atoms)).frame


def test_molecules_with_an_atom_in_the_sphere_are_taken_whole() -> None:
    frame = methanes((6, 6, 6), (9.4, 6, 6), (6, 11.5, 6))
    assert cluster(frame, 0, 3.0).formula == "C2H8", "a hydrogen of the second is 2.8 Å away"
    assert cluster(frame, 0, 2.5).formula == "C1H4"
    assert cluster(frame, 0, 5.2).formula == "C3H12"
    assert cluster(frame, 0, 3.0).cell is None


def test_molecules_across_the_boundary_are_put_together() -> None:
    frame = methanes((0.1, 0.1, 0.1), (11.0, 3.0, 0.1))
    whole = cluster(frame, 0, 4.0)
    distances = np.linalg.norm(whole.positions[:, None] - whole.positions, axis=2)
    assert distances.max() < 6, "no atom is a cell away"
    carbons = [i for i, symbol in enumerate(whole.species) if symbol == "C"]
    hydrogens = [i for i, symbol in enumerate(whole.species) if symbol == "H"]
    bonded = (distances[np.ix_(carbons, hydrogens)] < 1.2).sum(axis=1)
    assert bonded.tolist() == [4, 4]


def test_what_has_no_molecules_or_no_room_is_refused() -> None:
    copper = canonical(from_ase(bulk("Cu", cubic=True) * (3, 3, 3))).frame
    with pytest.raises(ValueError, match="a molecule reaches through the cell"):
        cluster(copper, 0, 3.0)
    with pytest.raises(ValueError, match="the cell is 12 Å wide, less than twice the radius"):
        cluster(methanes((6, 6, 6)), 0, 6.1)
    with pytest.raises(ValueError, match="no cell"):
        cluster(canonical(from_ase(molecule("CH4"))).frame, 0, 3.0)


def test_centres_are_the_worst_atoms_apart_from_each_other() -> None:
    frame = methanes((6, 6, 6), (11.9, 6, 6))
    deviation = np.linspace(0.1, 0.2, 10)
    deviation[:2] = [0.9, 0.5]  # the two carbon atoms, 5.9 Å apart
    assert centres(frame, deviation, 0.15, 0.0, 1) == [0]
    assert centres(frame, deviation, 0.15, 2.0, 9) == [0, 1]
    assert centres(frame, deviation, 0.15, 7.0, 9) == [0]
    assert centres(frame, 0 * deviation, 0.15, 0.0, 3) == [0], "a candidate by its virial"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"labels": {"code": "tblite"}}, "audit frames are labelled whole"),
        ({"labels": {"code": "vasp"}, "audit": {"per_round": 0}}, "supports periodic cells only"),
    ],
)
def test_campaigns_that_cannot_have_clusters(tmp_path, more, words) -> None:  # type: ignore[no-untyped-def]
    bulk("Cu", cubic=True).write(tmp_path / "a.extxyz")
    document = {
        "name": "c",
        "type_map": ["Cu"],
        "systems": {"a": {"structures": ["a.extxyz"]}},
        "initial": {"perturb": {}},
        "stages": [{"name": "s", "systems": ["a"], "temperatures": [300]}],
        "selection": {"clusters": {"radius": 3.0}},
        **more,
    }
    with pytest.raises(SpecError, match=words):
        gather(Spec.model_validate(document), tmp_path)
