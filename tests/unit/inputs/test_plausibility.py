"""Valid but unusual physics: odd numbers are warnings, absurd ones are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from dpstream.inputs.gather import Gathered, plausible
from dpstream.inputs.plausibility import UnusualSetting, findings
from dpstream.shared.atoms.frames import Frame, FrameLabel, canonical, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec

METHANE, COPPER = molecule("CH4"), bulk("Cu", cubic=True)


def found(atoms: Atoms, forces: float | None = None, **sections: Any) -> list[UnusualSetting]:
    """Findings of a campaign of one structure, with labels of that RMS force."""
    stage = {"name": "one", "systems": ["a"], "temperatures": [300], **sections.pop("stage", {})}
    spec = Spec.model_validate(
        {
            "name": "test",
            "type_map": sorted(set(atoms.symbols)),
            "systems": {"a": {"structures": ["a.xyz"]}},
            "initial": {"perturb": {"copies": 1}},
            "stages": [stage],
            **sections,
        }
    )
    frame = canonical(from_ase(atoms)).frame
    labelled: list[tuple[Frame, FrameLabel]] = []
    if forces is not None:
        labelled = [(frame, FrameLabel(0.0, np.full((len(atoms), 3), forces)))]
    return findings(spec, {"a": [frame]}, labelled)


def stretched(factors: tuple[float, float, float]) -> Atoms:
    atoms = COPPER.copy()
    atoms.set_cell(atoms.cell * np.array(factors)[:, None], scale_atoms=True)
    return atoms


def boxed(width: float) -> Atoms:
    atoms = METHANE.copy()
    atoms.set_cell([width] * 3)
    atoms.center()
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize(
    ("atoms", "stage"),
    [
        (METHANE, {"md": {"timestep": 0.0005}}),
        (METHANE, {"md": {"timestep": 0.001}, "temperatures": [2000]}),
        (COPPER, {"md": {"timestep": 0.005}}),
        (COPPER, {"md": {"ensemble": "npt"}, "pressures": [0, 50_000]}),
        (boxed(20), {}),
        (fcc111("Cu", (1, 1, 4), vacuum=6, periodic=True), {}),
        (bulk("NaCl", "rocksalt", a=5.64), {"md": {"ensemble": "npt"}, "pressures": [1]}),
        (bulk("CsF", "rocksalt", a=6.0), {"md": {"ensemble": "npt"}, "pressures": [1]}),
        (bulk("C", "diamond", a=3.0), {}),
        (Atoms("Ar"), {}),
    ],
)
def test_usual_campaigns_raise_no_finding(atoms: Atoms, stage: Mapping[str, Any]) -> None:
    assert found(atoms, stage=stage) == []


@pytest.mark.parametrize(
    ("atoms", "stage", "absurd", "words"),
    [
        (METHANE, {"md": {"timestep": 1.0}}, True, "1 ps is 1000 fs.*with H.* 1 fs are usual"),
        (METHANE, {"md": {"timestep": 0.002}}, False, "timestep: 0.002 ps is 2 fs"),
        (COPPER, {"md": {"timestep": 0.05}}, True, "timestep: 0.05 ps is 50 fs"),
        (
            METHANE,
            {"temperatures": [20_000]},
            False,
            "at 20000 K an atom of H moves .* in a step of",
        ),
        (COPPER, {"md": {"steps": 10, "every": 10}}, False, "trajectories of 0.01 ps"),
        (COPPER, {"temperatures": [50_000]}, False, "temperatures: 50000 K"),
        (COPPER, {"md": {"ensemble": "npt"}, "pressures": [1e7]}, False, "is 1000 GPa"),
        (COPPER, {"md": {"ensemble": "npt"}, "pressures": [1e9]}, True, "the unit is bar"),
        (stretched((10, 1, 1)), {}, False, "structure 1 .* 10 times .* right for a slab only"),
        (
            stretched((10, 1, 1)),
            {"md": {"ensemble": "npt"}, "pressures": [1]},
            True,
            "closes a vacuum",
        ),
        (stretched((0.5, 0.5, 0.5)), {}, True, "0.12 times that of its elements"),
        (stretched((10, 10, 10)), {}, True, "no atom has a neighbour within 2 times"),
    ],
)
def test_a_wrong_unit_is_found(
    atoms: Atoms, stage: Mapping[str, Any], absurd: bool, words: str
) -> None:
    (finding,) = found(atoms, stage=stage)
    assert finding.absurd == absurd
    assert re.search(words, finding.text), finding.text


@pytest.mark.parametrize(
    ("trust", "forces", "absurd", "words"),
    [
        ({"low": 100, "high": 400}, None, True, "trust.low: 100 eV/Å; the unit is eV/Å"),
        ({"low": 2, "high": 4}, None, False, "typical: 0.05 to 0.3"),
        ({"low": 100, "high": 400}, 0.5, True, "200 times the RMS force of the given labels"),
        ({"low": 0.5, "high": 1}, 0.1, False, "5 times the RMS force"),
        ({"low": 1e-4, "high": 1}, None, False, "below the noise"),
        ({"target": 50}, None, True, "trust.target: 50"),
    ],
)
def test_trust_levels_are_compared_with_forces(
    trust: Mapping[str, float], forces: float | None, absurd: bool, words: str
) -> None:
    (finding,) = found(COPPER, forces, trust=trust)
    assert finding.absurd == absurd
    assert words in finding.text


def test_trust_levels_of_stages_are_named() -> None:
    stage = {"trust": {"low": 20, "high": 40}}
    (finding,) = found(COPPER, stage=stage)
    assert finding.text.startswith("stages.0.trust.low: 20 eV/Å")
    assert found(COPPER, 0.5, trust={"low": 0.05, "high": 0.2}) == []
    assert found(COPPER, 0.0) == [], "an ideal crystal"
    assert found(COPPER, 0.5, trust={"low": 20, "high": 40, "relative": 1.0}) == []


def test_the_absurd_is_refused_unless_forced() -> None:
    gathered = Gathered({}, [], [], [], ["odd"], absurd=["stages.0.md.timestep: 1 ps"])
    with pytest.raises(SpecError, match=r"timestep: 1 ps \(--force overrides this\)"):
        plausible(gathered, force=False)
    forced = plausible(gathered, force=True)
    assert (forced.warnings, forced.absurd) == (["stages.0.md.timestep: 1 ps", "odd"], [])
