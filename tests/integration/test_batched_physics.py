"""The engines `batched` and `md` sample the same ensemble of the same PyTorch model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.geometry.rdf import get_rdf
from ase.units import kB

pytest.importorskip("torch_sim")

from dpstream.services.explorer.batched.replica import ReplicaState
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.explore import explore, read_checkpoint
from dpstream.shared.atoms.frames import Batch, Floats, canonical, from_ase, to_ase
from dpstream.shared.messages import ChunkExplored
from dpstream.shared.values import Condition, Trust
from tests.support.explorer import ExplorerHarness, evaluated

pytestmark = [pytest.mark.pytorch, pytest.mark.soak, pytest.mark.timeout(3600)]

ALLOY = bulk("Cu", cubic=True, a=3.95) * (2, 2, 2)
ALLOY.symbols[::2] = "Au"
FRAME = canonical(from_ase(ALLOY)).frame
FREEDOMS = 3 * len(FRAME.species) - 3
TEMPERATURE = 200.0
EVERYTHING = Trust(low=1e-12, high=1e9)
MD = {"timestep": 0.002, "every": 10, "steps": 2400, "skip": 400, "chunk": 5, "tau_t": 0.1}
REPLICAS = 4
BLOCKS = 5
"""Per trajectory, for the errors of averages; a block is 0.8 ps, eight times tau_t."""


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExplorerResources]:
    resources = ExplorerResources(tmp_path_factory.mktemp("worker"), formats=frozenset({".pth"}))
    yield resources
    resources.close()


@dataclass(frozen=True, eq=False)
class Run:
    """A trajectory: its frames, and with engine `batched` its states at the ends of chunks."""

    frames: Batch
    states: Sequence[ReplicaState]


def runs(
    resources: ExplorerResources, folder: Path, models: Sequence[Path], engine: str, **md: Any
) -> list[Run]:
    """One run per seed; those of `batched` all at once."""
    stage = {"name": "one", "systems": ["s"], "temperatures": [TEMPERATURE], "engine": engine}
    more = {"stages": [stage], "training": {"backend": "pytorch"}}
    harness = ExplorerHarness(folder, FRAME, models, md={**MD, **md}, spec_extra=more)

    def last(seed: int) -> ChunkExplored:
        command = harness.explore(
            condition=Condition(system="s", temperature=TEMPERATURE),
            trust=EVERYTHING,
            pinned=False,
            seed=seed,
            driver=0,
            max_seconds=3000,
        )
        return explore(resources, command, harness.context(command))

    with ThreadPoolExecutor(REPLICAS if engine == "batched" else 1) as threads:
        ends = list(threads.map(last, range(1, REPLICAS + 1)))
    events = [*harness.published(), *ends]
    return [_run(harness, [e for e in events if e.attempt == end.attempt]) for end in ends]


def _run(harness: ExplorerHarness, chunks: Sequence[ChunkExplored]) -> Run:
    assert chunks[-1].stopped is None
    batches = [harness.batch(chunk.candidates) for chunk in chunks if chunk.candidates]
    frames = Batch.of([frame for batch in batches for frame in batch])
    restarts = [harness.store.get(chunk.restart.uri) for chunk in chunks if chunk.restart]
    saved = [read_checkpoint(data)[0] for data in restarts]
    skipped = len(saved) - len(batches) + 1
    return Run(frames, [ReplicaState.loads(data) for data in saved[skipped:]])


def mean_and_error(values: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Average over trajectories and frames with its standard error, from blocks."""
    blocks = [block.mean(axis=0) for each in values for block in np.array_split(each, BLOCKS)]
    return np.mean(blocks, axis=0), np.std(blocks, axis=0, ddof=1) / np.sqrt(len(blocks))


def kinetic_energy(state: ReplicaState) -> float:
    return float((state.momenta**2 / state.masses[:, None]).sum() / 2)


def rdf(batch: Batch) -> Floats:
    """Radial distribution of every frame up to 3.9 Å, `(n_frames, n_bins)`."""
    return np.array([get_rdf(to_ase(frame), 3.9, 26, no_dists=True) for frame in batch])


def deviations(one: Sequence[Floats], other: Sequence[Floats]) -> Floats:
    """Differences of the averages in units of their standard error."""
    (a, error_a), (b, error_b) = mean_and_error(one), mean_and_error(other)
    return np.asarray((a - b) / np.maximum(np.hypot(error_a, error_b), 1e-9))


def test_temperature_energy_pressure_and_structure_are_those_of_lammps(
    resources: ExplorerResources, tmp_path: Path, alloy_torch_committee: list[Path]
) -> None:
    model = alloy_torch_committee[:1]
    found: dict[str, dict[str, list[Floats]]] = {}
    for engine in ("batched", "md"):
        names: dict[str, list[Floats]] = {"energy": [], "pressure": [], "rdf": []}
        all_runs = runs(resources, tmp_path / engine, alloy_torch_committee, engine)
        for number, each in enumerate(all_runs):
            folder = tmp_path / f"{engine}-{number}"
            folder.mkdir()
            results = evaluated(resources.engine, folder, model, each.frames)
            assert each.frames.cells is not None
            volumes = np.linalg.det(each.frames.cells)
            names["energy"].append(results["energies"][0])
            names["pressure"].append(
                np.trace(results["virials"][0], axis1=1, axis2=2) / 3 / volumes
            )
            names["rdf"].append(rdf(each.frames))
        found[engine] = names
        if engine == "batched":
            temperatures = [
                np.array([2 * kinetic_energy(s) / (FREEDOMS * kB) for s in run.states])
                for run in all_runs
            ]
    mean, error = mean_and_error(temperatures)
    print(f"T = {mean:.1f} ± {error:.1f} K")
    assert abs(mean - TEMPERATURE) < 3 * error
    assert error < 12
    for name in ("energy", "pressure"):
        values = [mean_and_error(found[engine][name]) for engine in found]
        print(name, values)
        assert abs(deviations(found["batched"][name], found["md"][name])) < 3
    apart = deviations(found["batched"]["rdf"], found["md"]["rdf"])
    print("rdf", np.round(apart, 1))
    assert np.abs(apart).max() < 4
    assert np.mean(apart**2) < 2


def test_energy_is_conserved_without_a_thermostat(
    resources: ExplorerResources, tmp_path: Path, alloy_torch_committee: list[Path]
) -> None:
    """In 1 ps, with fluctuations that fall with the square of the time step."""
    spread = {}
    for timestep in (0.002, 0.001):
        md = {"ensemble": "nve", "timestep": timestep, "steps": round(1 / timestep), "skip": 0}
        folder = tmp_path / f"{timestep}"
        all_runs = runs(resources, folder, alloy_torch_committee, "batched", chunk=1, **md)
        totals = []
        for run in all_runs:
            moved = [replace(FRAME, positions=state.positions) for state in run.states]
            results = evaluated(
                resources.engine, folder, alloy_torch_committee[:1], Batch.of(moved)
            )
            kinetic = np.array([kinetic_energy(state) for state in run.states])
            totals.append((results["energies"][0] + kinetic) / len(FRAME.species))
        times = np.arange(len(totals[0])) * 10 * timestep
        drifts = [np.polyfit(times, total, 1)[0] for total in totals]
        print(timestep, "drift", np.array(drifts) * 1e6, "µeV per atom and ps")
        assert np.abs(drifts).max() < 5e-6
        spread[timestep] = np.mean([np.std(total) for total in totals])
    print("fluctuations", spread)
    assert 2.5 < spread[0.002] / spread[0.001] < 6
