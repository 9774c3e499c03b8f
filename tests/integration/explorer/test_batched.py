"""Trajectories in one batch, on real PyTorch models: what neighbours must not change."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.units import fs

pytest.importorskip("torch_sim")

from dpstream.services.explorer.__main__ import plans
from dpstream.services.explorer.lammps.script import data_file
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.settings import ExplorerSettings
from dpstream.services.explorer.tasks.explore import explore
from dpstream.shared.atoms.frames import Batch, Frame, min_distance
from dpstream.shared.errors import EngineCrashed, Permanent, Stopped
from dpstream.shared.messages import ChunkExplored
from dpstream.shared.settings import read_settings
from dpstream.shared.spec import Md
from dpstream.shared.values import Condition, Trust
from tests.support.workers.explorer import ALLOY, AU4CU4, BAROSTATS, CH4, ExplorerHarness
from tests.support.workers.explorer import run as run_lammps

EVERYTHING = Trust(low=1e-12, high=1e9)
SAME = 100
"""Checks for which two trajectories are compared."""
DOUBLE = replace(
    AU4CU4,
    species=("Au",) * 8 + ("Cu",) * 8,
    positions=np.concatenate(
        [
            AU4CU4.positions[part] + shift
            for part in (slice(0, 4), slice(4, 8))
            for shift in ([0, 0, 0], [0, 0, ALLOY.cell[2, 2]])
        ]
    ),
    cell=np.diag(ALLOY.cell.lengths() * [1, 1, 2]),
)
"""Au8Cu8: twice the cell of Au4Cu4."""


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExplorerResources]:
    resources = ExplorerResources(
        tmp_path_factory.mktemp("worker"), formats=frozenset({".pb", ".pth"})
    )
    yield resources
    resources.close()


def harness_for(
    folder: Path, models: Sequence[Path], frame: Frame = AU4CU4, **md: Any
) -> ExplorerHarness:
    stage: dict[str, Any] = {"name": "one", "systems": ["s"], "temperatures": [300.0]}
    stage["engine"] = "batched"
    if str(md.get("ensemble")).startswith("npt"):
        stage["pressures"] = [0.0]
    return ExplorerHarness(
        folder,
        frame,
        models,
        md={"steps": 20, **md},
        spec_extra={"stages": [stage], "training": {"backend": "pytorch"}},
    )


pytestmark = [pytest.mark.pytorch, pytest.mark.soak]


def run(resources: ExplorerResources, harness: ExplorerHarness, **more: Any) -> ChunkExplored:
    command = harness.explore(**{"trust": EVERYTHING, **more})
    return explore(resources, command, harness.context(command))


def frames(harness: ExplorerHarness, event: ChunkExplored) -> Batch:
    return harness.batch(event.candidates)


def content(batch: Batch) -> Mapping[str, Any]:
    """Everything in a batch of frames, to the last digit."""
    cells = [] if batch.cells is None else batch.cells.tolist()
    return {"positions": batch.positions.tolist(), "cells": cells} | {
        name: batch.arrays[name].tolist() for name in ("devi_f", "devi_v", "time_ps")
    }


npt = pytest.mark.skipif(not BAROSTATS, reason="this TorchSim has no sound barostat")
SOME = [pytest.param("npt-iso", 3, marks=npt), pytest.param("npt-aniso", 3, marks=npt)]


@pytest.mark.parametrize(("ensemble", "neighbours"), [("nvt", 3), ("nvt", 7), *SOME])
def test_neighbours_change_no_digit_of_a_trajectory(
    resources: ExplorerResources,
    tmp_path: Path,
    alloy_torch_committee: list[Path],
    ensemble: str,
    neighbours: int,
) -> None:
    """Neighbours of other sizes, temperatures, ensembles and drivers, which join and leave."""
    models = alloy_torch_committee
    here = harness_for(tmp_path / "here", models, ensemble=ensemble)
    alone = content(frames(here, run(resources, here)))

    def neighbour(number: int) -> ChunkExplored:
        frame = DOUBLE if number % 3 == 1 else AU4CU4
        own = "nve" if number % 3 == 2 else ensemble
        steps = 10 + 10 * (number % 2)
        other = harness_for(tmp_path / f"{number}", models, frame, ensemble=own, steps=steps)
        pressure = 0.0 if own.startswith("npt") else None
        cold = Condition(system="s", temperature=100.0 * (number + 1), pressure=pressure)
        return run(resources, other, condition=cold, seed=number, driver=number)

    with ThreadPoolExecutor(neighbours + 1) as threads:
        before = [threads.submit(neighbour, number) for number in range(neighbours)]
        event = threads.submit(run, resources, here)
        assert content(frames(here, event.result())) == alone
        assert all(each.result().stopped is None for each in before)
    assert len(np.unique(np.array(alone["devi_f"]))) == 4


@pytest.mark.parametrize("ensemble", ["nvt", *(each.values[0] for each in SOME if BAROSTATS)])
def test_when_a_batch_is_put_together_changes_no_digit(
    alloy_torch_committee: list[Path], ensemble: str
) -> None:
    """Its replicas are collected anew when one joins or leaves, which depends on the time."""
    from dpstream.services.explorer.batched.group import Group

    kept, renewed = (replica(alloy_torch_committee, ensemble) for _ in range(2))
    group = Group([kept])
    for _ in range(60):
        group.check()
        other = Group([renewed])
        other.check()
        other.write_back()
    group.write_back()
    for name in ("positions", "momenta", "cell", "chain", "barostat"):
        assert (getattr(kept.state, name) == getattr(renewed.state, name)).all(), name


def replica(models: Sequence[Path], ensemble: Any = "nvt") -> Any:
    from dpstream.services.explorer.batched.group import Replica, Request
    from dpstream.services.explorer.batched.replica import Terms, initial_state

    terms = Terms.under(
        Md(ensemble=ensemble, every=2),
        Condition(system="s", temperature=300.0),
        AU4CU4,
        models=tuple(map(str, models)),
        driver=0,
        trust=EVERYTHING.model_dump(),
        pinned=True,
        seed=3,
    )
    state = initial_state(AU4CU4, Md(), 300.0, seed=3)
    return Replica(terms, state, Request(checks=1000, streak=0, frames="unused"))


@pytest.mark.parametrize(
    ("ensemble", "apart"),
    [("nve", 1e-6), ("nvt", 1e-5), pytest.param("npt-iso", 5e-3, marks=npt)],
)
def test_a_trajectory_is_that_of_lammps_from_the_same_velocities(
    resources: ExplorerResources,
    tmp_path: Path,
    alloy_torch_committee: list[Path],
    ensemble: str,
    apart: float,
) -> None:
    """Both solve the same equations, those of thermostat and barostat included. `apart`: Å at most;
    only the barostats divide a step differently, and this cell doubles its volume."""
    from dpstream.services.explorer.batched.group import Group

    one = replica(alloy_torch_committee, ensemble)
    velocities = one.state.momenta / one.state.masses[:, None] * (1000 * fs)  # Å/ps
    group = Group([one])
    for _ in range(SAME):
        group.check()
    positions, cells = (np.array(each) for each in list(zip(*one.request.seen, strict=True))[:2])
    other = run_lammps(
        resources.engine,
        tmp_path,
        AU4CU4,
        alloy_torch_committee[::-1],  # the second one drives
        Condition(system="s", temperature=300.0, pressure=0.0),
        checks=SAME,
        velocity=[
            f"set atom {number} vx {x!r} vy {y!r} vz {z!r}"
            for number, (x, y, z) in enumerate(velocities.tolist(), 1)
        ],
        ensemble=ensemble,
        timestep=one.terms.timestep,
        every=one.terms.every,
    )
    assert cells == pytest.approx(other.arrays["cells"], abs=apart)
    moved = (positions - other.arrays["positions"]) @ np.linalg.inv(cells)
    assert np.abs((moved - np.round(moved)) @ cells).max() < apart


PRESSURE = """
import sys
from dpstream.services.explorer.lammps.session import Session
from pathlib import Path
session = Session(Path("unused"))
model, data = sys.argv[1:]
for line in ("units metal", "atom_style atomic", "box tilt large", f"read_data {data}",
             f"pair_style deepmd {model}", "pair_coeff * * Au Cu", "run 0 post no"):
    session.lammps.command(line)
print("bar:", session.lammps.get_thermo("press"))
"""


def test_the_stress_has_the_sign_and_unit_of_the_barostats(
    tmp_path: Path, alloy_torch_committee: list[Path]
) -> None:
    """Against the derivative of the energy by the volume, and LAMMPS' pressure of the frame."""
    import torch

    from dpstream.services.explorer.batched.group import Group
    from dpstream.services.explorer.batched.integration import BAR

    group = Group([replica(alloy_torch_committee)])
    state, model = group.motion.state, group.motion.model
    stress = model(state)["stress"][0]
    pressure = -float(stress.trace()) / 3
    cell, positions, energies = state.cell, state.positions, []
    for factor in (1 + 1e-5, 1 - 1e-5):
        state.cell, state.positions = cell * factor, positions * factor
        energies.append(float(model(state)["energy"][0]))
    volume = float(torch.linalg.det(cell)[0])
    assert pressure == pytest.approx(-np.subtract(*energies) / (6e-5 * volume), rel=1e-4)

    data = tmp_path / "data"
    data.write_text(data_file(AU4CU4, ("Au", "Cu"), {}))
    words = [sys.executable, "-c", PRESSURE, str(alloy_torch_committee[0]), str(data)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = float(done.stdout.rpartition("bar:")[2])
    assert pressure / BAR == pytest.approx(found, rel=1e-5)
    assert abs(found) > 1000


def test_a_molecule_in_vacuum(
    resources: ExplorerResources, tmp_path: Path, methane_torch_committee: list[Path]
) -> None:
    harness = harness_for(tmp_path, methane_torch_committee, CH4)
    batch = frames(harness, run(resources, harness))
    assert batch.cells is None
    assert (batch.arrays["devi_v"] == 0).all()
    masses = np.array([12.011] + [1.008] * 4)
    centres = np.einsum("a,fax->fx", masses, batch.positions) / masses.sum()
    np.testing.assert_allclose(centres, np.broadcast_to(centres[0], centres.shape), atol=3e-6)


def test_an_unphysical_trajectory_ends_and_its_neighbour_continues(
    resources: ExplorerResources, tmp_path: Path, alloy_torch_committee: list[Path]
) -> None:
    models = alloy_torch_committee
    good = harness_for(tmp_path / "good", models)
    hot = harness_for(tmp_path / "hot", models)
    dense = harness_for(tmp_path / "dense", models, overlap=2.7)
    hell = Condition(system="s", temperature=1e25)
    with ThreadPoolExecutor(2) as threads:
        lost = threads.submit(run, resources, hot, condition=hell)
        overlapping = threads.submit(run, resources, dense)
        event = run(resources, good)
    assert (event.stopped, event.counts.total) == (None, 4)
    assert (lost.result().stopped, lost.result().dropped) == ("atoms are lost", 4)
    assert "apart" in str(overlapping.result().stopped)


def test_a_crash_ends_the_trajectories_of_the_batch_and_the_next_ones_run(
    resources: ExplorerResources, tmp_path: Path, alloy_torch_committee: list[Path]
) -> None:
    harness = harness_for(tmp_path, alloy_torch_committee, steps=100000)
    with ThreadPoolExecutor(2) as threads:
        lost = [threads.submit(run, resources, harness, seed=seed) for seed in (1, 2)]
        _await_moving(resources, 2)
        process = resources.batch.child._process
        assert process is not None
        process.kill()
        for each in lost:
            with pytest.raises(EngineCrashed):
                each.result()
    short = harness_for(tmp_path / "short", alloy_torch_committee)
    assert run(resources, short).counts.total == 4


def test_a_stopped_task_leaves_the_batch(
    resources: ExplorerResources, tmp_path: Path, alloy_torch_committee: list[Path]
) -> None:
    endless = harness_for(tmp_path / "endless", alloy_torch_committee, steps=100000)
    command = endless.explore(trust=EVERYTHING)
    context = endless.context(command)
    with ThreadPoolExecutor(1) as threads:
        stopped = threads.submit(explore, resources, command, context)
        _await_moving(resources, 1)
        context.stopping.set()
        with pytest.raises(Stopped):
            stopped.result()
    harness = harness_for(tmp_path / "next", alloy_torch_committee)
    assert run(resources, harness).counts.total == 4
    assert not resources.batch._advancing


def test_trajectories_of_several_slots_move_in_one_batch(
    tmp_path: Path, alloy_torch_committee: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpstream.services.explorer.batched.group import Replica
    from dpstream.services.explorer.batched.replica import ReplicaState, Terms

    settings = read_settings(
        ExplorerSettings,
        broker="amqp://host",
        store=str(tmp_path),
        explorer_slots=2,
        explorer_queues="explore",
        explorer_models=".pth",
    )
    slots = [plan.resources for plan in plans(settings, tmp_path / "worker")]
    replicas: list[Replica] = []
    call = slots[0].batch.child.call

    def recorded(operation: str, arguments: Mapping[str, Any], **more: Any) -> Any:
        if operation == "put":
            state = ReplicaState.loads(Path(arguments["state"]).read_bytes())
            replicas.append(Replica(Terms.of(arguments["terms"]), state))
        return call(operation, arguments, **more)

    monkeypatch.setattr(slots[0].batch.child, "call", recorded)
    harness = harness_for(tmp_path / "here", alloy_torch_committee, ensemble="nvt")
    with ThreadPoolExecutor(2) as threads:
        events = threads.map(lambda slot: run(slot, harness), slots)
        assert [event.counts.total for event in events] == [4, 4]
    for slot in slots:
        slot.close()
    assert len(replicas) == 2
    assert replicas[0].kind == replicas[1].kind


def _await_moving(resources: ExplorerResources, replicas: int) -> None:
    tick = threading.Event()
    for _ in range(600):
        if len(resources.batch._advancing) == replicas:
            return
        tick.wait(0.1)
    raise AssertionError("the replicas do not move")


def test_models_of_another_backend_are_refused(
    resources: ExplorerResources, tmp_path: Path, alloy_committee: list[Path]
) -> None:
    harness = harness_for(tmp_path, alloy_committee)
    with pytest.raises(Permanent, match=r"needs \.pth models"):
        run(resources, harness)


def untrained(path: Path, symbols: Sequence[str]) -> Path:
    """A model with types in this order, as one that begins with a user's model may have."""
    import torch
    from deepmd.pt.model.model import get_model

    descriptor = {"type": "se_e2_a", "rcut": 4.5, "rcut_smth": 1.0, "seed": 1}
    descriptor |= {"sel": [60] * len(symbols), "neuron": [4, 8], "axis_neuron": 2}
    fitting = {"type": "ener", "neuron": [8, 8], "seed": 1}
    model = {"type_map": list(symbols), "descriptor": descriptor, "fitting_net": fitting}
    torch.jit.save(torch.jit.script(get_model(model).eval()), str(path))
    return path


@pytest.mark.parametrize("symbols", [("Au", "Cu"), ("Cu", "Zn", "Au"), ("Au", "Zn")])
def test_a_model_may_number_the_elements_in_its_own_order(
    tmp_path: Path, symbols: Sequence[str]
) -> None:
    from dpstream.services.explorer.batched.group import Group
    from dpstream.shared.atoms.deep_pot import DeepPotential

    path = untrained(tmp_path / "model.pth", symbols)
    each = replica([path])
    moved = np.random.default_rng(1).normal(0, 0.2, AU4CU4.positions.shape)
    each.state = replace(each.state, positions=each.state.positions + moved)
    if "Cu" not in symbols:
        with pytest.raises(ValueError, match="the model has no element Cu"):
            each.check_elements()
        return
    forces = Group([each]).motion.state.forces.cpu().numpy()
    model, state = DeepPotential(str(path)), each.state
    types = [model.type_map.index(symbol) for symbol in state.species]
    _, expected, _ = model.eval(state.positions.reshape(1, -1), state.cell.reshape(1, 9), types)
    assert np.abs(expected).max() > 1e-6
    np.testing.assert_allclose(forces, expected[0], atol=1e-12)


def test_a_model_without_an_element_is_refused_before_it_can_end_a_batch(tmp_path: Path) -> None:
    from dpstream.services.explorer.batched import child

    for name, symbols in (("whole", ("Au", "Cu")), ("lacking", ("Au", "Zn"))):
        untrained(tmp_path / f"{name}.pth", symbols)
    whole, lacking = (replica([tmp_path / f"{name}.pth"]) for name in ("whole", "lacking"))
    state = tmp_path / "state.npz"
    state.write_bytes(whole.state.dumps())
    child.put("one", vars(whole.terms), str(state))
    with pytest.raises(ValueError, match="the model has no element Cu"):
        child.put("other", vars(lacking.terms), str(state))
    with pytest.raises(ValueError, match="the model has no element Cu"):
        child.change("one", vars(lacking.terms))
    assert list(child.REPLICAS) == ["one"]
    assert child.REPLICAS["one"].terms == whole.terms
    child.end("one")


def moved_frames(count: int) -> Any:
    import torch

    from dpstream.services.explorer.batched.model import Frames

    rng = np.random.default_rng(2)
    moved = AU4CU4.positions + rng.normal(0, 0.05, (count, 8, 3))
    numbers = torch.tensor([[79] * 4 + [29] * 4] * count)
    boxes = torch.tensor(np.array([AU4CU4.cell] * count))
    return Frames(torch.tensor(moved), numbers, boxes, None, None)


@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_pinned_frames_on_a_gpu_are_evaluated_in_batches_of_one_size(
    alloy_torch_committee: list[Path], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    import torch

    from dpstream.services.explorer.batched import model

    monkeypatch.setattr(model, "ON_GPU", True)
    plain, counted = (model.Member(str(alloy_torch_committee[0])) for _ in range(2))
    sizes: list[int] = []

    class Counting(torch.nn.Module):  # type: ignore[misc]
        def forward(self, coordinates: Any, *rest: Any, **more: Any) -> Any:
            sizes.append(len(coordinates))
            return plain.module(coordinates, *rest, **more)

    counted.module = Counting()
    batch = moved_frames(count)
    found, expected = counted.evaluate(batch, pinned=True), plain.evaluate(batch, pinned=False)
    assert {*sizes} == {8}
    assert found.energies.shape == (count,)
    torch.testing.assert_close(found.forces, expected.forces)
    torch.testing.assert_close(found.virials, expected.virials)


def test_frames_are_evaluated_in_parts_when_memory_is_short(
    alloy_torch_committee: list[Path],
) -> None:
    import torch

    from dpstream.services.explorer.batched.model import Member

    batch = moved_frames(7)
    plenty = Member(str(alloy_torch_committee[0]))
    expected = plenty.evaluate(batch, pinned=False)

    class Short(torch.nn.Module):  # type: ignore[misc]
        """The model on a device with memory for two frames."""

        def forward(self, coordinates: Any, *rest: Any, **more: Any) -> Any:
            if len(coordinates) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return plenty.module(coordinates, *rest, **more)

    little = Member(str(alloy_torch_committee[0]))
    little.module = Short()
    found = little.evaluate(batch, pinned=False)
    assert torch.equal(found.forces, expected.forces)
    assert torch.equal(found.virials, expected.virials)
    assert little.most is not None
    assert little.most // 8 <= 2


def test_overlapping_atoms_are_found_on_the_device() -> None:
    """Cells of every skew, with a limit around the closest distance."""
    import torch

    from dpstream.services.explorer.batched.proximity import may_overlap

    rng = np.random.default_rng(5)
    cells = np.eye(3) * rng.uniform(2.5, 9, (40, 1, 3)) + np.tril(rng.normal(0, 2, (40, 3, 3)), -1)
    positions = rng.normal(0, 20, (40, 6, 3))
    frames = [Frame(("H",) * 6, p, c) for p, c in zip(positions, cells, strict=True)]
    closest = np.array([min_distance(frame) for frame in frames])
    tensors = torch.tensor(positions), torch.tensor(cells)
    over = may_overlap(*tensors, torch.tensor(closest * 1.01))
    assert over.all()
    under = may_overlap(*tensors, torch.tensor(closest * 0.99)).numpy()
    heights = 1 / np.linalg.norm(np.linalg.inv(cells), axis=1).max(axis=1)
    assert (under == (2 * 1.001 * 0.99 * closest >= heights)).all()
    assert 0 < under.sum() < 20
    positions[3, 2] = np.nan
    assert may_overlap(torch.tensor(positions), tensors[1], torch.zeros(40)).tolist() == [
        number == 3 for number in range(40)
    ]
