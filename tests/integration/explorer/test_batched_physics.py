"""The engines `batched` and `md` sample the same ensemble of the same PyTorch model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.geometry.rdf import get_rdf
from ase.units import bar, kB

pytest.importorskip("torch_sim")

from dpstream.services.explorer.batched.replica import ReplicaState
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.explore import explore, read_checkpoint
from dpstream.shared.atoms.frames import Batch, Floats, Frame, canonical, from_ase, to_ase
from dpstream.shared.messages import ChunkExplored
from dpstream.shared.values import Condition, FrameRef, Trust
from tests.support.models.tiny_committees import write_system
from tests.support.models.tiny_torch_committees import train_member
from tests.support.workers.explorer import BAROSTATS, ExplorerHarness, evaluated

pytestmark = [pytest.mark.pytorch, pytest.mark.soak, pytest.mark.timeout(3600)]

LATTICE = 3.8
"""Å, about that at TEMPERATURE and PRESSURE."""
ALLOY = bulk("Cu", cubic=True, a=LATTICE) * (2, 2, 2)
ALLOY.symbols[[z % LATTICE < 0.1 for z in ALLOY.positions[:, 2]]] = "Au"
FRAME = canonical(from_ase(ALLOY)).frame
FREEDOMS = 3 * len(FRAME.species) - 3
TEMPERATURE = 300.0
EVERYTHING = Trust(low=1e-12, high=1e9)
MD = {"timestep": 0.002, "every": 10, "steps": 700, "skip": 200, "chunk": 5}
MD |= {"tau_t": 0.1, "tau_p": 0.5}
PRESSURE = 1.25e5
"""bar; the crystal is some percent shorter than without."""
SQUEEZED: dict[str, Any] = {"steps": 800, "skip": 200}
"""With a barostat. Its oscillations take tenths of tau_p, which have to be longer than the time
between two checks, or these would meet the same phase again and again."""
EQUILIBRATION: dict[str, Any] = {"steps": 1500, "skip": 600}
"""Of the trajectory whose frames are the starts of the others."""
REPLICAS = 6
"""Their averages are independent. Those of parts of a trajectory are not: a Nosé–Hoover chain mixes
the modes of a crystal slowly."""
LARGEST = 3.5
"""Difference of two averages in standard errors, which have ten degrees of freedom."""
STEPS = 1200
"""Of the training of the member that moves the atoms. Those of other tests are trained too little
to keep a crystal: its structure would change slowly, and averages have no error that blocks of
picoseconds could show."""


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExplorerResources]:
    resources = ExplorerResources(tmp_path_factory.mktemp("worker"), formats=frozenset({".pth"}))
    yield resources
    resources.close()


@pytest.fixture(scope="module")
def crystal_committee(
    tmp_path_factory: pytest.TempPathFactory, alloy_torch_committee: list[Path]
) -> list[Path]:
    """A member that keeps the crystal, and one that only judges."""
    folder = tmp_path_factory.mktemp("crystal")
    write_system(folder / "data", strained_alloy, 80)
    train_member(folder / "member", folder / "data", 1, STEPS)
    return [folder / "member" / "frozen.pth", alloy_torch_committee[0]]


def strained_alloy(rng: np.random.Generator) -> Atoms:
    atoms = bulk("Cu", cubic=True, a=3.85) * (2, 1, 1)
    atoms.symbols[rng.permutation(8)[:4]] = "Au"
    strain = np.eye(3) * (1 + rng.normal(0, 0.02)) + np.tril(rng.normal(0, 0.02, (3, 3)))
    atoms.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
    atoms.positions += rng.normal(0, rng.choice([0.05, 0.1, 0.2]), atoms.positions.shape)
    atoms = atoms[np.argsort(atoms.get_chemical_symbols())]
    atoms.calc = EMT()
    return atoms


@dataclass(frozen=True, eq=False)
class Run:
    """A trajectory: its frames, and with engine `batched` its states at the ends of chunks."""

    frames: Batch
    states: Sequence[ReplicaState]


@pytest.fixture(scope="module")
def starts(
    resources: ExplorerResources,
    tmp_path_factory: pytest.TempPathFactory,
    crystal_committee: list[Path],
) -> Mapping[str, Sequence[Frame]]:
    """By ensemble, frames of a trajectory of LAMMPS.

    In a perfect crystal half of the kinetic energy would go into the positions. The thermostats of
    all trajectories would answer with the same oscillation, of 30 K after 1 ps and 15 K after 2 ps,
    which is in no error that is estimated from the differences between trajectories.
    """
    found = {}
    for ensemble in ("nvt", "npt-iso", "npt-aniso"):  # the layers of gold make the cell tetragonal
        folder = tmp_path_factory.mktemp("equilibrium")
        md = {"ensemble": ensemble, **EQUILIBRATION}
        (run,) = runs(resources, folder, crystal_committee, "md", [FRAME], **md)
        numbers = np.linspace(0, len(run.frames) - 1, REPLICAS).round().astype(int)
        found[ensemble] = [run.frames[number] for number in numbers]
    return found


def runs(
    resources: ExplorerResources,
    folder: Path,
    models: Sequence[Path],
    engine: str,
    starts: Sequence[Frame],
    **md: Any,
) -> list[Run]:
    """One run per start; those of `batched` all at once."""
    pressure = PRESSURE if str(md.get("ensemble")).startswith("npt") else None
    stage = {"name": "one", "systems": ["s"], "temperatures": [TEMPERATURE], "engine": engine}
    if pressure is not None:
        stage["pressures"] = [pressure]
    more = {"stages": [stage], "training": {"backend": "pytorch"}}
    harness = ExplorerHarness(folder, FRAME, models, md={**MD, **md}, spec_extra=more)
    structures = harness.frame_refs("starts.npz", Batch.of(starts))

    def last(seed: int, structure: FrameRef) -> ChunkExplored:
        command = harness.explore(
            structure=structure,
            condition=Condition(system="s", temperature=TEMPERATURE, pressure=pressure),
            trust=EVERYTHING,
            pinned=False,
            seed=seed,
            driver=0,
            max_seconds=3000,
        )
        return explore(resources, command, harness.context(command))

    with ThreadPoolExecutor(len(starts)) as threads:
        # A child ends with the thread that started it, and LAMMPS is to outlive these threads.
        each = threads.map if engine == "batched" else map
        ends = list(each(last, range(1, len(starts) + 1), structures))
    events = [*harness.published(), *ends]
    own = [[e for e in events if e.attempt == end.attempt] for end in ends]
    return [_run(harness, chunks, engine == "batched") for chunks in own]


def _run(harness: ExplorerHarness, chunks: Sequence[ChunkExplored], with_states: bool) -> Run:
    assert chunks[-1].stopped is None
    batches = [harness.batch(chunk.candidates) for chunk in chunks if chunk.candidates]
    frames = Batch.of([frame for batch in batches for frame in batch])
    if not with_states:
        return Run(frames, [])
    restarts = [harness.store.get(chunk.restart.uri) for chunk in chunks if chunk.restart]
    saved = [read_checkpoint(data)[0] for data in restarts]
    skipped = len(saved) - len(batches) + 1
    return Run(frames, [ReplicaState.loads(data) for data in saved[skipped:]])


def mean_and_error(values: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Average over trajectories and frames with its standard error, from the trajectories."""
    own = [each.mean(axis=0) for each in values]
    return np.mean(own, axis=0), np.std(own, axis=0, ddof=1) / np.sqrt(len(own))


def kinetic_energy(state: ReplicaState) -> float:
    return float((state.momenta**2 / state.masses[:, None]).sum() / 2)


def rdf(batch: Batch) -> Floats:
    """Radial distribution of every frame up to 3.7 Å, `(n_frames, n_bins)`. Half a cell is 3.8."""
    return np.array([get_rdf(to_ase(frame), 3.7, 25, no_dists=True) for frame in batch])


def deviations(one: Sequence[Floats], other: Sequence[Floats]) -> Floats:
    """Differences of the averages in units of their standard error."""
    (a, error_a), (b, error_b) = mean_and_error(one), mean_and_error(other)
    return np.asarray((a - b) / np.maximum(np.hypot(error_a, error_b), 1e-9))


@dataclass(frozen=True, eq=False)
class Sampled:
    """Of every trajectory, a value per frame: `energy` eV; `virial` `(n_frames, 3)` bar, its
    diagonal over the volume; `volume` Å³, `lengths` `(n_frames, 3)` Å; the `frames`. `temperature`:
    K, of `batched`, a value per state."""

    energy: list[Floats]
    virial: list[Floats]
    volume: list[Floats]
    lengths: list[Floats]
    frames: list[Batch]
    temperature: list[Floats]


def sampled(
    resources: ExplorerResources,
    folder: Path,
    models: Sequence[Path],
    engine: str,
    starts: Sequence[Frame],
    **md: Any,
) -> Sampled:
    found = Sampled([], [], [], [], [], [])
    for number, run in enumerate(runs(resources, folder / engine, models, engine, starts, **md)):
        own = folder / f"{engine}-{number}"
        own.mkdir()
        results = evaluated(resources.engine, own, models[:1], run.frames)
        assert run.frames.cells is not None
        volumes = np.linalg.det(run.frames.cells)
        diagonals = np.diagonal(results["virials"][0], axis1=1, axis2=2)
        found.energy.append(results["energies"][0])
        found.virial.append(diagonals / volumes[:, None] / bar)
        found.volume.append(volumes)
        found.lengths.append(np.diagonal(run.frames.cells, axis1=1, axis2=2))
        found.frames.append(run.frames)
        found.temperature.append(np.array([temperature(state) for state in run.states]))
    return found


def temperature(state: ReplicaState, freedoms: int = FREEDOMS) -> float:
    return 2 * kinetic_energy(state) / (freedoms * kB)


def check_temperature(found: Sampled, freedoms: int = FREEDOMS) -> tuple[float, float]:
    """The average over the time `spent` is the temperature asked for. All trajectories begin with
    the same kinetic energy and a thermostat at rest: an oscillation that they have in common
    averages out as tau_t / `spent`, not with their number. Returns the average and both errors,
    K."""
    mean, error = mean_and_error([t * FREEDOMS / freedoms for t in found.temperature])
    print(f"T = {mean:.1f} ± {error:.1f} K")
    spent = len(found.frames[0]) * MD["every"] * MD["timestep"]
    common = TEMPERATURE * MD["tau_t"] / spent
    assert abs(mean - TEMPERATURE) < LARGEST * error + common
    assert error < 12
    return float(mean), float(np.hypot(error, common))


def compare(batched: Sequence[Floats], md: Sequence[Floats], name: str) -> None:
    """Averages agree within their errors."""
    apart = deviations(batched, md)
    for engine, values in (("batched", batched), ("md", md)):
        print(name, engine, *mean_and_error(values))
    assert np.abs(apart).max() < LARGEST, name


def test_temperature_energy_pressure_and_structure_are_those_of_lammps(
    resources: ExplorerResources,
    tmp_path: Path,
    crystal_committee: list[Path],
    starts: Mapping[str, Sequence[Frame]],
) -> None:
    batched, md = (
        sampled(resources, tmp_path, crystal_committee, engine, starts["nvt"])
        for engine in ("batched", "md")
    )
    check_temperature(batched)
    compare(batched.energy, md.energy, "energy")
    traces = ([v.mean(axis=1) for v in each.virial] for each in (batched, md))
    compare(*traces, "pressure")
    apart = deviations(*([rdf(frames) for frames in each.frames] for each in (batched, md)))
    print("rdf", np.round(apart, 1))
    assert np.abs(apart).max() < 5
    assert np.mean(apart**2) < 3


needs_barostat = pytest.mark.skipif(not BAROSTATS, reason="this TorchSim has no sound barostat")


@needs_barostat
def test_the_volume_and_its_fluctuations_are_those_of_lammps(
    resources: ExplorerResources,
    tmp_path: Path,
    crystal_committee: list[Path],
    starts: Mapping[str, Sequence[Frame]],
) -> None:
    more = {"ensemble": "npt-iso", **SQUEEZED}
    batched, md = (
        sampled(resources, tmp_path, crystal_committee, engine, starts["npt-iso"], **more)
        for engine in ("batched", "md")
    )
    kelvin = check_temperature(batched)
    check_pressure(batched, [v.mean(axis=1) for v in batched.virial], kelvin)
    compare(batched.energy, md.energy, "energy")
    compare(batched.volume, md.volume, "volume")
    centre = np.mean(md.volume)
    spreads = ([(v - centre) ** 2 for v in each.volume] for each in (batched, md))
    compare(*spreads, "squared fluctuation of the volume")


@needs_barostat
def test_every_length_of_the_cell_answers_to_its_pressure(
    resources: ExplorerResources,
    tmp_path: Path,
    crystal_committee: list[Path],
    starts: Mapping[str, Sequence[Frame]],
) -> None:
    """With the Langevin barostat, whose thermostat moves the centre of mass too."""
    more = {"ensemble": "npt-aniso", **SQUEEZED}
    found = sampled(resources, tmp_path, crystal_committee, "batched", starts["npt-aniso"], **more)
    check_temperature(found, FREEDOMS + 3)
    for axis in range(3):
        check_pressure(found, [v[:, axis] for v in found.virial])
    lengths = np.concatenate(found.lengths)
    print("lengths", lengths.mean(axis=0), lengths.std(axis=0))
    assert (np.std(lengths[:, 0] / lengths[:, 1]) > 0.005).all()


def check_pressure(
    found: Sampled, virial: Sequence[Floats], kelvin: tuple[float, float] = (TEMPERATURE, 0.0)
) -> None:
    """The average is the pressure asked for. `kelvin`: temperature of the kinetic part, with its
    error; that of the Langevin barostat is the one asked for."""
    ideal = [len(FRAME.species) * kB * kelvin[0] / bar / volumes for volumes in found.volume]
    mean, error = mean_and_error([p + i for p, i in zip(virial, ideal, strict=True)])
    error = np.hypot(error, np.mean(ideal) * kelvin[1] / kelvin[0])
    print(f"P = {mean:.0f} ± {error:.0f} bar")
    assert abs(mean - PRESSURE) < LARGEST * error
    assert error < 0.05 * PRESSURE


def test_energy_is_conserved_without_a_thermostat(
    resources: ExplorerResources,
    tmp_path: Path,
    crystal_committee: list[Path],
    starts: Mapping[str, Sequence[Frame]],
) -> None:
    """In 1 ps, with fluctuations that fall with the square of the time step."""
    spread = {}
    for timestep in (0.002, 0.001):
        md = {"ensemble": "nve", "timestep": timestep, "steps": round(1 / timestep), "skip": 0}
        folder = tmp_path / f"{timestep}"
        two = starts["nvt"][:2]
        all_runs = runs(resources, folder, crystal_committee, "batched", two, chunk=1, **md)
        totals = []
        for run in all_runs:
            moved = [replace(FRAME, positions=state.positions) for state in run.states]
            results = evaluated(resources.engine, folder, crystal_committee[:1], Batch.of(moved))
            kinetic = np.array([kinetic_energy(state) for state in run.states])
            totals.append((results["energies"][0] + kinetic) / len(FRAME.species))
        times = np.arange(len(totals[0])) * 10 * timestep
        drifts = [np.polyfit(times, total, 1)[0] for total in totals]
        print(timestep, "drift", np.array(drifts) * 1e6, "µeV per atom and ps")
        assert np.abs(drifts).max() < 5e-6
        spread[timestep] = np.mean([np.std(total) for total in totals])
    print("fluctuations", spread)
    assert 2.5 < spread[0.002] / spread[0.001] < 6
