"""The acceptance contract, rule by rule, on made-up facts: no code runs here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dpstream.services.labeler.acceptance import (
    AFTER,
    BEFORE,
    AcceptanceLimits,
    Outcome,
    check_after,
    check_before,
)
from dpstream.services.labeler.codes.ase import Ase
from dpstream.services.labeler.codes.pyscf import Pyscf
from dpstream.services.labeler.codes.tblite import Tblite
from dpstream.shared.atoms.frames import Frame, FrameLabel
from dpstream.shared.values import Recipe

WATER = Frame(("H", "H", "O"), np.array([[0.76, 0.59, 0], [-0.76, 0.59, 0], [0, 0, 0.0]]))
BOXED = Frame(WATER.species, WATER.positions, np.eye(3) * 9.0)
AL = Frame(("Al",), np.zeros((1, 3)), np.array([[2.86, 0, 0], [1.43, 2.48, 0], [1.43, 0.83, 2.34]]))
GOOD = Outcome(
    energies=(-138.0,),
    forces=np.full((3, 3), 0.5),
    virial=np.eye(3),
    positions=WATER.positions,
)


def recipe(charge: int = 0, multiplicity: int = 1) -> Recipe:
    return Recipe(code="tblite", version="1", settings={}, charge=charge, multiplicity=multiplicity)


def rule_before(
    frame: Frame, code: Any = None, limits: AcceptanceLimits = AcceptanceLimits(), **spin: int
) -> str:
    broken = check_before(frame, recipe(**spin), code or Tblite(), limits)
    return "" if broken is None else broken.rule


def shifted(frame: Frame, atom: int, position: list[float]) -> Frame:
    positions = frame.positions.copy()
    positions[atom] = position
    return replace(frame, positions=positions)


def test_sound_frames_may_be_computed() -> None:
    assert rule_before(WATER) == ""
    assert rule_before(BOXED) == ""


def test_close_atoms_are_named_with_their_distance() -> None:
    close = shifted(WATER, 0, [0.3, 0, 0])
    broken = check_before(close, recipe(), Tblite(), AcceptanceLimits())
    assert broken is not None
    assert broken.rule == "min-distance"
    assert "0.300 Å" in broken.detail
    assert rule_before(close, limits=AcceptanceLimits(min_distance=0.29)) == ""


def test_atoms_close_to_a_periodic_image_count() -> None:
    across = Frame(("H", "H"), np.array([[0.1, 0, 0], [8.9, 0, 0]]), np.eye(3) * 9.0)
    assert rule_before(across) == "min-distance"


def test_coincident_atoms() -> None:
    assert rule_before(shifted(WATER, 0, [0, 0, 0])) == "min-distance"


@pytest.mark.parametrize(
    ("charge", "multiplicity", "rule"),
    [
        (0, 1, ""),
        (0, 3, ""),
        (1, 1, "electron-parity"),
        (1, 2, ""),
        (-1, 2, ""),
        (0, 2, "electron-parity"),
        (0, 11, ""),
        (0, 13, "electron-parity"),
    ],
)
def test_electron_parity_of_water(charge: int, multiplicity: int, rule: str) -> None:
    assert rule_before(WATER, charge=charge, multiplicity=multiplicity) == rule


def test_classical_calculators_count_no_electrons() -> None:
    odd = Frame(("Cu",), np.zeros((1, 3)))
    assert rule_before(odd) == "electron-parity"
    assert rule_before(odd, Ase()) == ""


def test_elements_beyond_the_code() -> None:
    francium = Frame(("Fr", "H"), np.array([[0, 0, 0], [0, 0, 2.5]]))
    assert rule_before(francium) == "unsupported-element"
    assert rule_before(francium, Pyscf()) == ""
    assert rule_before(Frame(("X",), np.zeros((1, 3))), Pyscf()) == "unsupported-element"


def test_a_molecular_code_takes_no_cell() -> None:
    assert rule_before(BOXED, Pyscf()) == "periodicity"


def test_a_metals_primitive_cell_needs_force() -> None:
    assert rule_before(AL, multiplicity=2) == "refused"
    assert rule_before(AL, limits=AcceptanceLimits(force=True), multiplicity=2) == ""
    wide = Frame(("Al",), np.zeros((1, 3)), np.eye(3) * 8.1)
    assert rule_before(wide, multiplicity=2) == ""
    salt = Frame(("Cl", "Na"), np.array([[0, 0, 0], [2.8, 0, 0]]), np.eye(3) * 5.6)
    assert rule_before(salt) == ""
    assert "Gamma" in Tblite().warnings(salt)[0]
    assert Tblite().warnings(wide) == []


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        (Frame((), np.zeros((0, 3))), "finite-positions"),
        (shifted(WATER, 0, [np.nan, 0, 0]), "finite-positions"),
        (replace(BOXED, cell=np.diag([9.0, 9.0, 0.0])), "cell"),
        (replace(BOXED, cell=np.diag([9.0, 9.0, -9.0])), "cell"),
        (replace(BOXED, cell=np.diag([9.0, np.inf, 9.0])), "cell"),
    ],
)
def test_broken_geometry_is_a_rejection_not_an_exception(frame: Frame, rule: str) -> None:
    assert rule_before(frame) == rule


def test_a_sound_outcome_is_a_label() -> None:
    assert check_after(WATER, GOOD, AcceptanceLimits()) is None
    assert check_after(BOXED, GOOD, AcceptanceLimits()) is None
    assert GOOD.label().energy == -138.0


HOT = np.zeros((3, 3))
HOT[1] = [30.0, 30.0, 30.0]  # norm 51.96
NAN = np.full((3, 3), np.nan)


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        ({"exit_status": -9}, "exit-status"),
        ({"exit_status": 2, "not_converged": True}, "exit-status"),
        ({"end_marker": False}, "end-marker"),
        ({"not_converged": True}, "not-converged"),
        ({"converged": False}, "not-converged"),
        ({"energies": ()}, "one-energy"),
        ({"energies": (-138.0, -137.0)}, "one-energy"),
        ({"energies": (float("nan"),)}, "one-energy"),
        ({"frames": 0}, "one-energy"),
        ({"frames": 2}, "one-energy"),
        ({"forces": None}, "forces"),
        ({"forces": np.zeros((2, 3))}, "forces"),
        ({"forces": NAN}, "forces"),
        ({"virial": None}, "virial"),
        ({"virial": NAN}, "virial"),
        ({"virial": np.zeros(6)}, "virial"),
        ({"forces": HOT}, "max-force"),
        ({"positions": WATER.positions + 2e-5}, "positions"),
        ({"positions": WATER.positions[:2]}, "positions"),
        ({"positions": NAN}, "positions"),
        ({"fault": "crashed", "exit_status": 1}, "crashed"),
    ],
)
def test_each_rule_has_a_fact_that_breaks_it(facts: dict[str, Any], rule: str) -> None:
    broken = check_after(BOXED, replace(GOOD, **facts), AcceptanceLimits())
    assert broken is not None
    assert broken.rule == rule


def test_every_rule_is_broken_by_some_row() -> None:
    rows = test_each_rule_has_a_fact_that_breaks_it.pytestmark[0].args[1]
    assert {rule for rule, _ in AFTER} <= {rule for _, rule in rows}
    assert len({rule for rule, _ in (*BEFORE, *AFTER)}) == len(BEFORE) + len(AFTER)


def test_an_outcome_without_forces_breaks_no_later_rule_first() -> None:
    nothing = Outcome()
    broken = check_after(WATER, nothing, AcceptanceLimits())
    assert broken is not None
    assert broken.rule == "one-energy"


def test_a_molecule_needs_no_virial() -> None:
    assert check_after(WATER, replace(GOOD, virial=None), AcceptanceLimits()) is None


def test_what_the_code_said_is_kept() -> None:
    broken = check_after(
        WATER, replace(GOOD, not_converged=True, messages=("250 cycles",)), AcceptanceLimits()
    )
    assert broken is not None
    assert broken.detail.endswith("250 cycles")


def test_facts_survive_json_to_the_bit() -> None:
    import json

    rng = np.random.default_rng(5)
    outcome = replace(GOOD, forces=rng.normal(size=(3, 3)), messages=("a", "b"), seconds=0.1)
    again = Outcome.of(json.loads(json.dumps(outcome.facts())))
    assert again.forces is not None
    assert outcome.forces is not None
    assert (again.forces == outcome.forces).all()
    assert again.messages == outcome.messages
    assert again.energies == outcome.energies


def test_a_stored_label_is_judged_by_the_same_rules() -> None:
    stored = Outcome.of_label(WATER, FrameLabel(-1.0, HOT))
    assert check_after(WATER, stored, AcceptanceLimits(max_force=52.0)) is None
    broken = check_after(WATER, stored, AcceptanceLimits(max_force=51.0))
    assert broken is not None
    assert broken.rule == "max-force"
