"""The start of a replica, its state as bytes, and what validate refuses."""

from __future__ import annotations

import contextlib
import io
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import kB
from pydantic import ValidationError

from dpstream.inputs import check_installed
from dpstream.services.explorer.batched.replica import (
    ReplicaState,
    Terms,
    freedoms,
    initial_state,
)
from dpstream.services.explorer.engines import batched
from dpstream.services.explorer.engines.check import check_engine
from dpstream.services.explorer.handlers import unserved
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.shared.atoms.frames import Frame, canonical, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import Explore
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Md, Spec
from dpstream.shared.values import Condition

CUAU = bulk("Cu", cubic=True, a=3.85) * (3, 3, 3)
CUAU.symbols[::2] = "Au"
ALLOY = canonical(from_ase(CUAU)).frame
SQUEEZED = Condition(system="s", temperature=300, pressure=0.0)
WATER, CO2, ATOM = (canonical(from_ase(molecule(name))).frame for name in ("H2O", "CO2", "H"))


def temperature(state: ReplicaState, frame: Frame) -> float:
    kinetic = float((state.momenta**2 / state.masses[:, None]).sum() / 2)
    return 2 * kinetic / (freedoms(frame) * kB)


@pytest.mark.parametrize(("frame", "free"), [(ALLOY, 3 * 108 - 3), (WATER, 3), (CO2, 4)])
def test_a_replica_starts_at_its_temperature_and_at_rest(frame: Frame, free: int) -> None:
    state = initial_state(frame, Md(), 450.0, seed=3)
    assert freedoms(frame) == free
    assert temperature(state, frame) == pytest.approx(450.0)
    np.testing.assert_allclose(state.momenta.sum(axis=0), 0, atol=1e-12)
    if frame.cell is None:
        arms = state.positions - np.average(state.positions, axis=0, weights=state.masses)
        np.testing.assert_allclose(np.cross(arms, state.momenta).sum(axis=0), 0, atol=1e-10)


def test_velocities_depend_on_the_seed_and_obey_equipartition() -> None:
    first, again, other = (initial_state(ALLOY, Md(), 300.0, seed) for seed in (1, 1, 2))
    assert (first.momenta == again.momenta).all()
    assert (first.momenta != other.momenta).any()
    states = [initial_state(ALLOY, Md(), 300.0, seed) for seed in range(60)]
    energies = np.mean([s.momenta**2 / (2 * s.masses[:, None]) for s in states], axis=(0, 2))
    heavy = np.array(ALLOY.species) == "Au"
    expected = kB * 300 / 2 * freedoms(ALLOY) / (3 * 108)
    for atoms in (heavy, ~heavy):
        assert energies[atoms].mean() == pytest.approx(expected, rel=0.04)


def test_masses_are_those_of_the_settings() -> None:
    state = initial_state(WATER, Md(masses={"H": 2.014}), 300.0, seed=1)
    assert state.masses.tolist() == [2.014, 2.014, pytest.approx(15.999, abs=1e-3)]


def test_a_cold_replica_moves_a_little() -> None:
    assert temperature(initial_state(ALLOY, Md(), 0.0, seed=1), ALLOY) == pytest.approx(0.1)


def test_bytes_keep_every_digit() -> None:
    with_parameters = ALLOY.with_parameters({"fparam": np.array([0.3])})
    state = initial_state(with_parameters, Md(), 300.0, seed=1)
    back = ReplicaState.loads(state.dumps())
    for name, value in vars(state).items():
        found = getattr(back, name)
        if isinstance(value, np.ndarray):
            assert (found == value).all()
        else:
            assert found == value
    assert ReplicaState.loads(initial_state(WATER, Md(), 300.0, seed=1).dumps()).cell is None


def test_a_state_of_an_earlier_release_has_no_barostat() -> None:
    state = initial_state(ALLOY, Md(), 300.0, seed=1)
    with np.load(io.BytesIO(state.dumps())) as columns:
        kept = {k: columns[k] for k in columns.files if k not in ("barostat", "reference")}
    out = io.BytesIO()
    np.savez(out, **kept)
    back = ReplicaState.loads(out.getvalue())
    assert (back.barostat, back.reference) == (None, None)
    assert (back.momenta == state.momenta).all()


def test_terms_come_back_from_json() -> None:
    sent: dict[str, Any] = dict.fromkeys(Terms.__dataclass_fields__, 1)
    sent |= {"models": ["a"], "trust": {}}
    terms = Terms.of(sent)
    assert (terms.models, terms.every) == (("a",), 1)


def spec(ensemble: str = "nvt", backend: str = "pytorch") -> Spec:
    stage: dict[str, Any] = {
        "name": "one",
        "systems": ["s"],
        "temperatures": [300],
        "engine": "batched",
    }
    if ensemble.startswith("npt"):
        stage["pressures"] = [0.0]
    return Spec.model_validate(
        {
            "name": "c",
            "type_map": ["Au", "Cu"],
            "systems": {"s": {"structures": ["unused.xyz"]}},
            "initial": {"perturb": {}},
            "stages": [stage],
            "md": {"ensemble": ensemble},
            "training": {"backend": backend},
        }
    )


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt", "npt-iso", "npt-aniso"])
def test_supported_ensembles_are_accepted(ensemble: str) -> None:
    check_engine(spec(ensemble).stages[0], Condition(system="s", temperature=300), ALLOY, False)


def test_npt_tri_is_refused_with_the_engine_that_has_it() -> None:
    with pytest.raises(ValueError, match=r"does not support npt-tri.*use engine md"):
        check_engine(spec("npt-tri").stages[0], SQUEEZED, ALLOY, False)


def test_the_pressure_of_a_molecule_is_refused() -> None:
    with pytest.raises(ValueError, match="npt: the pressure of a molecule in vacuum is undefined"):
        check_engine(spec("npt").stages[0], SQUEEZED, WATER, False)


@pytest.mark.parametrize(("release", "refused"), [("0.3.0", True), ("0.6.2", False)])
def test_a_barostat_needs_a_torchsim_that_has_one(
    monkeypatch: pytest.MonkeyPatch, release: str, refused: bool
) -> None:
    monkeypatch.setattr(check_installed, "find_spec", lambda name: True)
    monkeypatch.setattr(metadata, "version", lambda name: release)
    check_installed.check_engines(spec("nvt"))
    outcome: Any = contextlib.nullcontext()
    if refused:
        outcome = pytest.raises(SpecError, match=r"stage one: .*npt-iso needs TorchSim 0\.6.*3\.12")
    with outcome:
        check_installed.check_engines(spec("npt-iso"))


@pytest.mark.parametrize(
    ("found", "release", "ensemble", "reason"),
    [
        (True, "0.3.0", "npt-iso", "npt-iso needs TorchSim 0.6"),
        (True, "0.3.0", "nvt", None),
        (True, "0.6.2", "npt-iso", None),
        (False, "", "nvt", "lacks TorchSim"),
    ],
)
def test_a_worker_declines_what_its_torchsim_cannot_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: bool,
    release: str,
    ensemble: str,
    reason: str | None,
) -> None:
    monkeypatch.setattr(batched.importlib.util, "find_spec", lambda name: found or None)
    monkeypatch.setattr(metadata, "version", lambda name: release)
    context = cast(Context, SimpleNamespace(spec=lambda: spec(ensemble)))
    command = Explore.model_construct(stage=0, committee=None)
    said = unserved(ExplorerResources(tmp_path, warm=False), command, context)
    assert (reason is None and said is None) or (reason is not None and reason in str(said))


def test_a_single_atom_is_refused() -> None:
    with pytest.raises(ValueError, match="a single atom has no dynamics"):
        check_engine(spec().stages[0], Condition(system="s", temperature=300), ATOM, False)


def test_models_have_to_be_those_of_pytorch() -> None:
    with pytest.raises(ValidationError, match=r"stages.0.engine: batched requires .*pytorch, not"):
        spec(backend="tensorflow")


def test_a_machine_without_torchsim_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check_installed, "find_spec", lambda name: None if "sim" in name else True)
    with pytest.raises(SpecError, match=r"batched needs TorchSim.*pip install torch-sim-atomistic"):
        check_installed.check_engines(spec())
