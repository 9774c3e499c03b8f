"""The explorer with real LAMMPS and real committees."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa

from dpstream.running.label_here import LabelMethod, frame_labeler
from dpstream.services.explorer.lammps import script as md_script
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.audit import audit
from dpstream.services.explorer.tasks.explore import explore, read_checkpoint
from dpstream.services.explorer.tasks.judge import judge
from dpstream.services.explorer.tasks.measure import measure
from dpstream.services.explorer.tasks.verify import verify
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.deviation import max_force_deviation, verdict, virial_deviation
from dpstream.shared.atoms.electron_temperature import heated
from dpstream.shared.atoms.frames import Batch, Frame, canonical, frame_key, from_ase, to_ase
from dpstream.shared.atoms.properties import PROPERTIES
from dpstream.shared.errors import EngineCrashed, Permanent, Stopped, Temporary
from dpstream.shared.messages import Audit, Judge, Measure, Verify
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import Device, Gpu
from dpstream.shared.spec import LabelSettings, Md
from dpstream.shared.values import (
    Accepted,
    Committee,
    Condition,
    Dataset,
    Ref,
    Trust,
)
from tests.support.models.graphs import writing
from tests.support.models.tiny_fits import STEPS, Apart
from tests.support.workers.explorer import (
    AL4,
    AL8,
    CH4,
    COLD,
    OPEN,
    ExplorerHarness,
    Trajectory,
    evaluated,
    run,
    total,
)

EMT_LABELS = {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}}


# ------------------------------------------------------------------------------------- the engine


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExplorerResources]:
    resources = ExplorerResources(tmp_path_factory.mktemp("bench"))
    resources.start()
    yield resources
    resources.close()


def test_same_seed_same_bits_in_one_process_and_in_another(
    resources: ExplorerResources,
    tmp_path: Path,
    methane_committee: list[Path],
    periodic_committee: list[Path],
) -> None:
    squeezed = Condition(system="s", temperature=600, pressure=1000)
    cases: list[tuple[Frame, list[Path], Condition, str]] = [
        (CH4, methane_committee, COLD, "nvt"),
        (AL8, periodic_committee, squeezed, "npt-tri"),
    ]
    other = ChildProcess("dpstream.services.explorer.lammps.child", tmp_path / "other")
    try:
        for frame, models, condition, ensemble in cases:
            first, again, elsewhere = (
                run(engine, tmp_path / "t", frame, models, condition, ensemble=ensemble)
                for engine in (resources.engine, resources.engine, other)
            )
            for name, values in first.arrays.items():
                assert np.array_equal(values, again.arrays[name]), name
                assert np.array_equal(values, elsewhere.arrays[name]), name
            assert first.outcome["made"] == 10
    finally:
        other.kill()


@pytest.mark.soak
def test_a_used_session_gives_the_bits_of_a_fresh_one(
    resources: ExplorerResources, tmp_path: Path, periodic_committee: list[Path]
) -> None:
    """Whatever ran in it before: another size, another box, another ensemble, a crash."""
    cells = (np.diag([4.05, 4.1, 4.0]), np.array([[8.3, 0, 0], [0.3, 8.2, 0], [-0.2, 0.1, 4.1]]))
    small, skewed = (
        canonical(from_ase(bulk("Al", cubic=True) * n)).frame for n in ((1, 1, 1), (2, 2, 1))
    )
    frames = [
        Frame(frame.species, frame.positions @ np.linalg.solve(frame.cell, cell), cell)
        for frame, cell in zip((small, skewed), cells, strict=True)
        if frame.cell is not None
    ]
    squeezed = Condition(system="s", temperature=500, pressure=3000)
    inferno = Condition(system="s", temperature=3e5)

    def work(engine: ChildProcess, which: Sequence[int]) -> list[Trajectory]:
        cases: list[tuple[Frame, Condition, dict[str, Any]]] = [
            (canonical(frames[0]).frame, COLD, {}),
            (canonical(frames[1]).frame, squeezed, {"ensemble": "npt-tri"}),
            (AL8, inferno, {"timestep": 0.005}),
            (AL8, COLD, {"ensemble": "npt-aniso"}),
        ]
        return [
            run(engine, tmp_path / "t", cases[i][0], periodic_committee, cases[i][1], **cases[i][2])
            for i in which
        ]

    resources.engine.kill()
    used = work(resources.engine, [3, 0, 1, 2, 3, 1, 0])
    resources.engine.kill()
    fresh = work(resources.engine, [1])[0]
    assert fresh.outcome["made"] == 10
    for one, other in ((fresh, used[2]), (fresh, used[5]), (used[0], used[4]), (used[1], used[6])):
        for name, values in one.arrays.items():
            assert np.array_equal(values, other.arrays[name]), name


@pytest.mark.parametrize("relative", [None, 0.3])
def test_deviation_of_the_pair_style_is_that_of_the_forces(
    resources: ExplorerResources,
    tmp_path: Path,
    periodic_committee: list[Path],
    relative: float | None,
) -> None:
    trust = Trust(low=0.1, high=1e9, relative=relative, relative_v=relative)
    hot = Condition(system="s", temperature=600)
    found = run(resources.engine, tmp_path, AL8, periodic_committee, hot, trust)
    forces = evaluated(resources.engine, tmp_path, periodic_committee, found.batch(AL8))
    devi_f = max_force_deviation(forces["forces"], relative)
    devi_v = virial_deviation(forces["virials"], len(AL8.species), relative)
    np.testing.assert_allclose(found.arrays["devi_f"], devi_f, rtol=1e-6)
    np.testing.assert_allclose(found.arrays["devi_v"], devi_v, rtol=1e-6)
    assert devi_f.min() > 1e-4  # a committee in perfect agreement would prove nothing


COMPARE = """
import json, sys
import numpy as np
from deepmd.infer import DeepPot, calc_model_devi
for case in json.loads(sys.argv[1]):
    with np.load(case["frames"]) as found:
        coord, box = found["positions"], found["cells"]
    n, models = len(coord), [DeepPot(model) for model in case["models"]]
    box = box.reshape(n, 9) if case["periodic"] else None
    np.save(case["out"], calc_model_devi(coord.reshape(n, -1), box, case["types"], models))
"""


@pytest.mark.soak
def test_deviation_is_that_of_calc_model_devi(
    resources: ExplorerResources,
    tmp_path: Path,
    methane_committee: list[Path],
    periodic_committee: list[Path],
) -> None:
    molecule = run(resources.engine, tmp_path / "molecule", CH4, methane_committee)
    crystal = run(resources.engine, tmp_path / "crystal", AL8, periodic_committee)
    cases = [
        {
            "frames": str(tmp_path / name / "frames.npz"),
            "out": str(tmp_path / name / "devi.npy"),
            "models": [str(model) for model in models],
            "types": types,
            "periodic": name == "crystal",
        }
        for name, models, types in (
            ("molecule", methane_committee, [0, 1, 1, 1, 1]),
            ("crystal", periodic_committee, [0] * 8),
        )
    ]
    command = [sys.executable, "-c", COMPARE, json.dumps(cases)]
    subprocess.run(command, check=True, capture_output=True)
    columns = np.load(tmp_path / "molecule/devi.npy")
    np.testing.assert_allclose(molecule.arrays["devi_f"], columns[:, 4], rtol=1e-6)
    columns = np.load(tmp_path / "crystal/devi.npy")
    np.testing.assert_allclose(crystal.arrays["devi_f"], columns[:, 4], rtol=1e-6)
    np.testing.assert_allclose(crystal.arrays["devi_v"], columns[:, 1], rtol=1e-6)


@pytest.mark.soak
def test_deviation_is_that_of_dp_model_devi(
    resources: ExplorerResources,
    tmp_path: Path,
    periodic_committee: list[Path],
    periodic_system: Path,
) -> None:
    models, out = list(map(str, periodic_committee)), tmp_path / "model_devi.out"
    dp = [str(Path(sys.executable).with_name("dp")), "--tf", "model-devi"]
    command = [*dp, "-m", *models, "-s", str(periodic_system), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    columns = np.loadtxt(out)
    batch = Batch(
        ("Al",) * 8,
        np.load(periodic_system / "set.000/coord.npy").reshape(-1, 8, 3),
        np.load(periodic_system / "set.000/box.npy").reshape(-1, 3, 3),
    )
    found = evaluated(resources.engine, tmp_path, periodic_committee, batch)
    np.testing.assert_allclose(max_force_deviation(found["forces"]), columns[:, 4], rtol=1e-6)
    np.testing.assert_allclose(virial_deviation(found["virials"], 8), columns[:, 1], rtol=1e-6)


def test_a_molecule_has_the_temperature_it_was_given(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    """Neither drift nor rotation, and the kinetic energy of 3 n − 6 freedoms at the start."""
    found = run(
        resources.engine, tmp_path, CH4, methane_committee, timestep=1e-6, every=1, checks=2
    )
    path = np.concatenate([[CH4.positions], found.arrays["positions"]])
    velocities = (path[2] - path[1]) / 1e-6  # Å/ps
    masses = np.array([12.011, 1.008, 1.008, 1.008, 1.008])
    momentum = masses @ velocities
    angular = (masses[:, None] * np.cross(path[1], velocities)).sum(axis=0)
    kinetic = 0.5 * masses @ np.square(velocities).sum(axis=1) * 1.0364269e-4  # eV
    assert abs(momentum).max() < 1e-2
    assert abs(angular).max() < 1e-2
    assert kinetic == pytest.approx(0.5 * 9 * 8.617333e-5 * 300, rel=1e-2)


@pytest.mark.parametrize(
    ("frame", "reason"), [(CH4, "fragments"), (AL8, "apart")], ids=["molecule", "crystal"]
)
def test_what_flies_apart_or_collides_is_stopped_not_a_crash(
    resources: ExplorerResources,
    tmp_path: Path,
    methane_committee: list[Path],
    periodic_committee: list[Path],
    frame: Frame,
    reason: str,
) -> None:
    models = methane_committee if frame is CH4 else periodic_committee
    inferno = Condition(system="s", temperature=3e5)
    found = run(
        resources.engine, tmp_path, frame, models, inferno, timestep=0.005, every=10, checks=50
    )
    assert found.outcome["made"] < 50
    assert reason in found.outcome["stopped"]
    pid = resources.engine.pid
    calm = run(resources.engine, tmp_path, frame, models)
    assert calm.outcome["made"] == 10
    assert resources.engine.pid == pid


# ------------------------------------------------------------------------------------ the handlers


def test_a_pinned_trajectory_is_one_event_that_counts_every_check(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    calm = harness.explore()
    seen = explore(resources, calm, harness.context(calm))
    assert harness.published() == []
    assert (seen.last, seen.chunk, seen.version, seen.stopped) == (True, 0, 1, None)
    assert seen.counts.total == sum(seen.histogram) == 20
    devi = harness.batch(seen.candidates).arrays["devi_f"] if seen.candidates else np.empty(0)
    split = float(np.median(devi))
    strict = harness.explore(trust=Trust(low=float(devi.min()) * 1.001, high=split))
    event = explore(resources, strict, harness.context(strict))
    assert total(event) == 20
    levels = strict.trust
    for item, kinds in (
        (event.candidates, {"candidate"}),
        (event.reservoir, {"accurate", "failed"}),
    ):
        batch = harness.batch(item)
        assert {verdict(x, None, levels) for x in batch.arrays["devi_f"]} == kinds
        for frame in batch:
            assert frame_key(frame) == frame_key(canonical(frame).frame)
    reservoir = harness.batch(event.reservoir)
    assert reservoir.arrays["weight"][~reservoir.arrays["failed"]].sum() == event.counts.accurate
    assert reservoir.arrays["weight"][reservoir.arrays["failed"]].sum() == event.counts.failed


def test_five_failed_checks_in_a_row_end_it_and_the_rest_is_dropped(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    command = harness.explore(trust=Trust(low=1e-9, high=2e-9))
    event = explore(resources, command, harness.context(command))
    assert (event.counts.failed, event.dropped) == (5, 15)
    assert event.stopped is not None
    assert "in a row" in event.stopped
    assert event.reservoir is not None


def test_streaming_publishes_chunk_by_chunk_and_another_attempt_goes_on(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    """In another process, without the files of the first."""
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    whole = harness.explore(pinned=False, trust=Trust(low=1e-9, high=1e9))
    last = explore(resources, whole, harness.context(whole))
    chunks = [*harness.published(), last]
    assert [event.chunk for event in chunks] == [0, 1, 2, 3]
    assert [event.last for event in chunks] == [False, False, False, True]
    assert sum(map(total, chunks)) == 20
    assert all(event.uniform for event in chunks)
    times = [t for event in chunks for t in harness.batch(event.candidates).arrays["time_ps"]]
    np.testing.assert_allclose(times, np.arange(1, 21) * 0.0025)

    more = harness.explore(pinned=False, trust=whole.trust, from_chunk=2, resume=chunks[1].restart)
    shutil.rmtree(tmp_path / "scratch")
    another = ExplorerResources(tmp_path / "another")
    with closing(another):
        last_again = explore(another, more, harness.context(more))
    again = [*harness.published(), last_again]
    assert [event.chunk for event in again] == [2, 3]
    for one, other in zip(chunks[2:], again, strict=True):
        assert total(one) == total(other)
        expected = harness.batch(one.candidates)
        found = harness.batch(other.candidates)
        np.testing.assert_allclose(found.positions, expected.positions, atol=2e-6)


def test_forces_are_right_after_a_restart_file(
    resources: ExplorerResources, tmp_path: Path, periodic_committee: list[Path]
) -> None:
    """LAMMPS numbers atoms and their images anew when it writes one."""
    crystal = canonical(from_ase(bulk("Al", cubic=True) * (2, 2, 2))).frame
    md = {"timestep": 0.002, "every": 1, "steps": 60, "chunk": 5, "stop_after": 1000}
    harness = ExplorerHarness(tmp_path, crystal, periodic_committee, md)
    hot = Condition(system="s", temperature=900)
    command = harness.explore(pinned=False, trust=Trust(low=1e-12, high=1e9), condition=hot)
    last = explore(resources, command, harness.context(command))
    for event in (*harness.published(), last):
        batch = harness.batch(event.candidates)
        forces = evaluated(resources.engine, tmp_path, periodic_committee, batch)["forces"]
        found = batch.arrays["devi_f"]
        np.testing.assert_allclose(found, max_force_deviation(forces, None), rtol=1e-4, atol=1e-5)


def test_a_newer_committee_takes_over_between_chunks(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    command = harness.explore(pinned=False, trust=Trust(low=1e-9, high=1e9))
    harness.add_committee(2, methane_committee[::-1])
    harness.add_committee(3, methane_committee[1:])
    last = explore(resources, command, harness.context(command))
    chunks = [*harness.published(), last]
    assert [event.version for event in chunks] == [1, 3, 3, 3]
    assert [event.uniform for event in chunks] == [True, False, False, False]
    assert sum(map(total, chunks)) == 20
    batch = harness.batch(chunks[1].candidates)
    assert set(batch.arrays["version"]) == {3}
    forces = evaluated(resources.engine, tmp_path, methane_committee[1:], batch)["forces"]
    np.testing.assert_allclose(batch.arrays["devi_f"], max_force_deviation(forces), rtol=1e-4)
    assert chunks[1].restart is not None
    _, state, _ = read_checkpoint(harness.store.get(chunks[1].restart.uri))
    assert (state["version"], state["made"], state["uniform"]) == (3, 10, False)


@pytest.mark.soak
def test_a_killed_engine_is_a_crash_and_the_next_task_works(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee, md={"steps": 200_000})
    command = harness.explore()
    pid = resources.engine.pid
    assert pid is not None
    killer = threading.Timer(3.0, os.kill, [pid, signal.SIGKILL])
    killer.start()
    with pytest.raises(EngineCrashed):
        explore(resources, command, harness.context(command))
    killer.join()
    small = ExplorerHarness(tmp_path / "small", CH4, methane_committee)
    command = small.explore()
    assert explore(resources, command, small.context(command)).counts.total == 20


def test_a_task_nobody_wants_ends_soon(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee, md={"steps": 2_000_000})
    command = harness.explore()
    context = harness.context(command)
    stopper = threading.Timer(2.0, context.stopping.set)
    stopper.start()
    with pytest.raises(Stopped):
        explore(resources, command, context)


def test_a_demanded_gpu_that_deepmd_cannot_use_is_the_machines_fault(
    resources: ExplorerResources,
    tmp_path: Path,
    methane_committee: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu(0, "NVIDIA H200", 143771, "580.159.04")
    monkeypatch.setattr(resources, "device", Device("cuda", gpu, required=True))
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    command = harness.explore()
    with pytest.raises(Temporary, match=r"\.pb models: DeePMD-kit cannot use NVIDIA H200"):
        explore(resources, command, harness.context(command))


def test_what_can_never_work_is_permanent(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    lone = Frame(("C",), np.zeros((1, 3)))
    harness = ExplorerHarness(tmp_path / "lone", lone, methane_committee)
    command = harness.explore()
    with pytest.raises(Permanent, match="supercell"):
        explore(resources, command, harness.context(command))
    harness = ExplorerHarness(tmp_path / "format", CH4, methane_committee)
    ref = harness.put("models/evil.pth", b"anything")
    committee = Committee(version=1, models=(ref,), type_map=harness.type_map)
    manifest = harness.put("evil.json", committee.model_dump_json().encode())
    command = harness.explore(committee=manifest)
    with pytest.raises(Permanent, match=r"evil\.pth"):
        explore(resources, command, harness.context(command))


def test_a_model_whose_graph_writes_a_file_is_not_loaded(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    written, evil = tmp_path / "written", tmp_path / "evil.pb"
    evil.write_bytes(writing(methane_committee[0], written, "by the energy"))
    committee = harness.add_committee(2, [evil])
    for _ in range(2):
        command = harness.explore(committee=committee)
        with pytest.raises(Permanent, match=r"node 'writes': operation 'WriteFile' is none of"):
            explore(resources, command, harness.context(command))
    assert not written.exists()
    resources.evaluate([evil], Batch.of([CH4]), harness.context(harness.explore()))
    assert written.read_text() == "by the energy", "TensorFlow itself runs it"


def test_judge_keeps_candidates_and_names_what_is_accurate(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    first = harness.explore(trust=Trust(low=1e-9, high=1e9))
    event = explore(resources, first, harness.context(first))
    assert event.candidates is not None
    waiting = harness.batch(event.candidates)
    newer = harness.add_committee(2, methane_committee[1:])
    forces = evaluated(resources.engine, tmp_path, methane_committee[1:], waiting)["forces"]
    devi = np.sort(max_force_deviation(forces))
    trust = Trust(low=float(devi[5] * 1.0001), high=float(devi[15] * 1.0001))
    refs = harness.frame_refs("pending.npz", waiting)
    command = Judge(
        **harness.fields(
            committee=newer,
            version=2,
            trust=trust,
            pool=(event.candidates,),
            frames=tuple(refs),
        )
    )
    done = judge(resources, command, harness.context(command))
    assert (done.counts.accurate, done.counts.candidate, done.counts.failed) == (12, 20, 8)
    remaining = harness.batch(done.pool[0])
    assert done.pool[0].version == 2
    assert set(remaining.arrays["version"]) == {2}
    assert len(remaining) == 10
    assert "time_ps" in remaining.arrays
    expected = [
        r.key for r, d in zip(refs, max_force_deviation(forces), strict=True) if d < trust.low
    ]
    assert list(done.accurate) == expected


def labelled_pack(harness: ExplorerHarness, system: Path, name: str) -> Ref:
    """A DeePMD system as a dataset manifest of one pack."""
    folder, n_atoms = system / "set.000", len(harness.frame.species)
    columns = {
        "energy": np.load(folder / "energy.npy"),
        "forces": np.load(folder / "force.npy").reshape(-1, n_atoms, 3),
    }
    cells = None
    if (folder / "virial.npy").exists():
        columns["virial"] = np.load(folder / "virial.npy").reshape(-1, 3, 3)
        cells = np.load(folder / "box.npy").reshape(-1, 3, 3)
    positions = np.load(folder / "coord.npy").reshape(-1, n_atoms, 3)
    pack = harness.put(
        f"{name}.npz", Batch(harness.frame.species, positions, cells, columns).dumps()
    )
    dataset = Dataset(version=1, packs=(pack,))
    return harness.put(f"{name}.json", dataset.model_dump_json().encode())


def test_audit_measures_the_true_error_and_calibrates_auto_levels(
    resources: ExplorerResources,
    tmp_path: Path,
    methane_committee: list[Path],
    methane_system: Path,
) -> None:
    auto = {"trust": {"target": 0.5, "min_pairs": 10}}
    harness = ExplorerHarness(tmp_path, CH4, methane_committee, spec_extra=auto)
    labels = labelled_pack(harness, methane_system, "audit")
    trust = Trust(low=0.5, high=5.0)
    command = Audit(
        **harness.fields(
            committee=harness.committee,
            version=1,
            stage=0,
            trust=trust,
            audit=labels,
            pairs=labels,
            seed=3,
        )
    )
    done = audit(resources, command, harness.context(command))
    pairs = json.loads(harness.store.get(done.pairs.uri))
    assert len(pairs["audit"]) == len(pairs["pairs"]) == 24
    reference = np.load(methane_system / "set.000/force.npy").reshape(-1, 5, 3)
    batch = Batch(CH4.species, np.load(methane_system / "set.000/coord.npy").reshape(-1, 5, 3))
    forces = evaluated(resources.engine, tmp_path, methane_committee, batch)["forces"]
    for row, pair in enumerate(pairs["audit"]):
        off = np.linalg.norm(forces[:, row] - reference[row], axis=-1)
        assert pair["error"] == pytest.approx(np.sqrt((off**2).mean(axis=0)).max())
        assert pair["deviation"] == pytest.approx(max_force_deviation(forces[:, row]))
        assert pair["verdict"] == verdict(pair["deviation"], None, trust)
    kept = [pair["squared"] for pair in pairs["audit"] if pair["verdict"] != "failed"]
    assert done.force == pytest.approx(np.sqrt(np.mean(kept)))
    assert done.levels is not None
    assert done.levels_why


def test_verify_measures_drift_and_errors(
    resources: ExplorerResources,
    tmp_path: Path,
    methane_committee: list[Path],
    periodic_committee: list[Path],
    periodic_system: Path,
) -> None:
    short = {"verification": {"nve_ps": 0.5, "max_drift": 1e-3}}
    harness = ExplorerHarness(tmp_path / "al", AL8, periodic_committee, spec_extra=short)
    test = labelled_pack(harness, periodic_system, "test")
    model = harness.put("models/final.pb", periodic_committee[0].read_bytes())
    fields = harness.fields(
        model=model, type_map=("Al",), structure=harness.structure, seed=5, test=test
    )
    done = verify(resources, Verify(**fields), harness.context(Verify(**fields)))
    assert done.stable, done.detail
    assert done.length_ps == pytest.approx(0.5)
    assert abs(done.drift) < 1e-3
    assert done.test is not None
    batch = Batch(
        AL8.species,
        np.load(periodic_system / "set.000/coord.npy").reshape(-1, 8, 3),
        np.load(periodic_system / "set.000/box.npy").reshape(-1, 3, 3),
    )
    found = evaluated(resources.engine, tmp_path, periodic_committee[:1], batch)
    reference = np.load(periodic_system / "set.000/virial.npy").reshape(-1, 3, 3)
    off = (found["virials"][0] - reference) / 8
    assert done.test.virial == pytest.approx(np.sqrt(np.mean(off**2)))

    hasty = ExplorerHarness(
        tmp_path / "ch4", CH4, methane_committee, md={"timestep": 0.01}, spec_extra=short
    )
    model = hasty.put("models/final.pb", methane_committee[0].read_bytes())
    fields = hasty.fields(model=model, type_map=("C", "H"), structure=hasty.structure, seed=5)
    done = verify(resources, Verify(**fields), hasty.context(Verify(**fields)))
    assert not done.stable
    assert done.detail


WANTED = [
    {"property": name, "system": "s", "tolerance": 0.05}
    for name in ("volume", "bulk-modulus", "elastic", "vacancy")
]


def labelled_points(harness: ExplorerHarness, crystal: Frame) -> Ref:
    """The structures of `WANTED`, labelled by EMT through the labeler, as the coordinator puts
    them together."""
    by_emt = LabelSettings.model_validate(EMT_LABELS)
    method, labels, origins = LabelMethod(by_emt, make_recipe(by_emt), {}), [], []
    with frame_labeler(method, harness.store, "points", threading.Event()) as at:
        for number, wanted in enumerate(WANTED):
            for frame in PROPERTIES[str(wanted["property"])].points(crystal):
                verdict = at.judge(frame_key(frame), frame)
                assert isinstance(verdict, Accepted)
                labels.append(verdict.label)
                origins.append(str(number))
    dataset = Dataset(version=1, labels=tuple(labels), origins=tuple(origins))
    return harness.put("points.json", dataset.model_dump_json().encode())


def by_hand(energies: Callable[[Any], float], stresses: Callable[[Any], Any]) -> dict[str, float]:
    """C11, C44 and a vacancy of `AL4` without any of our own fits and frames."""
    found = {}
    for name, index, place in (("C11", 0, (0, 0)), ("C44", 3, (1, 2))):
        sides = []
        for strain in (0.005, -0.005):
            atoms, bend = to_ase(AL4), np.eye(3)
            bend[place] += strain  # a shear bends one axis only, and turns the crystal a little
            atoms.set_cell(atoms.cell[:] @ bend, scale_atoms=True)
            sides.append(stresses(atoms)[index])
        found[name] = (sides[0] - sides[1]) / 0.01 / GPa
    atoms = to_ase(AL4)
    found["Al"] = energies(atoms[1:]) - 0.75 * energies(atoms)
    return found


@pytest.mark.filterwarnings("ignore:The minimum volume")
def test_properties_by_the_committee_and_by_the_recipe_from_the_same_structures(
    resources: ExplorerResources, tmp_path: Path, periodic_committee: list[Path]
) -> None:
    verification = {"verification": {"nve_ps": 0, "properties": WANTED}}
    harness = ExplorerHarness(tmp_path, AL4, periodic_committee, spec_extra=verification)
    points = labelled_points(harness, AL4)
    command = Measure(**harness.fields(committee=harness.committee, version=1, points=points))
    done = measure(resources, command, harness.context(command))
    assert [p.property for p in done.properties] == [0, 1, *[2] * 9, 3]
    found = {p.name.rpartition(" ")[2]: p for p in done.properties}

    def committee(atoms: Any) -> tuple[float, Any]:
        batch = Batch.of([from_ase(atoms)])
        means = {
            name: values.mean(axis=0)[0]
            for name, values in evaluated(
                resources.engine, tmp_path, periodic_committee, batch
            ).items()
            if name != "forces"
        }
        stress = full_3x3_to_voigt_6_stress(-means["virials"] / atoms.get_volume())
        return float(means["energies"]), stress

    def emt(atoms: Any) -> Any:
        atoms.calc = EMT()
        return atoms

    models = by_hand(lambda a: committee(a)[0], lambda a: committee(a)[1])
    recipe = by_hand(lambda a: emt(a).get_potential_energy(), lambda a: emt(a).get_stress())
    for name, number in models.items():
        assert found[name].model == pytest.approx(number, rel=0.02, abs=1e-3), name
        assert found[name].recipe == pytest.approx(recipe[name], rel=0.02, abs=1e-3), name
    assert found["volume"].recipe == pytest.approx(15.93, rel=1e-3)
    assert found["modulus"].recipe == pytest.approx(39.3, abs=0.5)

    final = harness.put("models/final.pb", periodic_committee[0].read_bytes())
    alone = harness.fields(
        model=final, type_map=("Al",), structure=harness.structure, seed=5, points=points
    )
    shown = verify(resources, Verify(**alone), harness.context(Verify(**alone))).properties
    assert [p.recipe for p in shown] == [p.recipe for p in done.properties]
    assert [p.model for p in shown] != [p.model for p in done.properties], "one model, no mean"


def test_descriptors_and_deviations_for_a_diverse_draw(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = ExplorerHarness(tmp_path, CH4, methane_committee)
    found = run(resources.engine, tmp_path / "run", CH4, methane_committee)
    context = harness.context(harness.explore())
    values, by_atom = resources.descriptors(harness.committee, found.batch(CH4), context)
    assert len(values) == len(by_atom) == 10
    assert values[0].shape[0] == 5
    np.testing.assert_allclose([d.max() for d in by_atom], found.arrays["devi_f"], rtol=1e-6)
    batch = found.batch(CH4)
    _, relative = resources.descriptors(harness.committee, batch, context, relative=2.0)
    models = resources.committee(harness.committee, context).models
    mean = resources.evaluate(models, batch, context).forces.mean(axis=0)
    scale = np.linalg.norm(mean, axis=2) + 2.0
    np.testing.assert_allclose(np.array(relative) * scale, np.array(by_atom), rtol=1e-9)
    # Hydrogens of a frame resemble one another more than the carbon.
    carbon, hydrogens = values[0][0], values[0][1:]
    spread = np.linalg.norm(hydrogens - hydrogens.mean(axis=0), axis=1).max()
    assert np.linalg.norm(carbon - hydrogens.mean(axis=0)) > spread


def test_parameters_reach_lammps(
    resources: ExplorerResources, by_fparam: Apart, tmp_path: Path
) -> None:
    """The same atoms at two values: two energies, those that the model has for them."""
    items, told = by_fparam
    energies = []
    for frame in (items[0].frame, items[len(items) // 2].frame):
        run(
            resources.engine,
            tmp_path,
            frame,
            [told.frozen] * 2,
            Condition(system="s", temperature=0),
        )
        found = evaluated(resources.engine, tmp_path, [told.frozen], Batch.of([frame]))
        pair = md_script.pair_commands([told.frozen], 0, ["Cu"], 1, OPEN, frame)
        still = Condition(system="s", temperature=0)
        script = md_script.start_script(frame, tmp_path / "data", Md(), still, 5, pair)
        resources.engine.call("begin", {"script": vars(script)})
        ask = {"checks": 0, "every": 1, "overlap": 0.1, "reach": 9.0}
        (energy,) = resources.engine.call("conserve", ask)["energies"]
        assert energy == pytest.approx(float(found["energies"][0, 0]), abs=1e-3)
        energies.append(energy)
    assert abs(energies[0] - energies[1]) > 0.01


@pytest.mark.parametrize(
    "engine",
    [
        {"kind": "md"},
        {"kind": "potential", "pair": ["pair_style lj/cut 6.0", "pair_coeff 1 1 0.4 2.3"]},
        {"kind": "search", "relax_steps": 2},
    ],
    ids=lambda engine: str(engine["kind"]),
)
def test_electrons_of_a_condition_reach_driver_judges_and_frames(
    resources: ExplorerResources, by_fparam: Apart, tmp_path: Path, engine: dict[str, Any]
) -> None:
    """The system says 7 K; the condition says 1 K, at which the models are asked."""
    items, told = by_fparam
    models = [tmp_path / f"{step}/model.pb" for step in (STEPS // 2, STEPS)]
    for step, model in zip((STEPS // 2, STEPS), models, strict=True):
        model.parent.mkdir()
        model.write_bytes(told.frozen_at(step).read_bytes())
    crystal = canonical(from_ase(bulk("Cu", cubic=True))).frame
    frame = heated(crystal if engine["kind"] == "search" else items[0].frame, "fparam", 7.0)
    harness = ExplorerHarness(tmp_path, frame, models, {"every": 1, "steps": 5}, hot_spec(engine))
    (condition,) = harness.context(harness.explore()).spec().stages[0].conditions()
    everything = Trust(low=1e-12, high=1e9)
    command = harness.explore(condition=condition, trust=everything)
    event = explore(resources, command, harness.context(command))
    batch = harness.batch(event.candidates)
    assert batch.arrays["fparam"].tolist() == [[1.0]] * len(batch)
    found = max_force_deviation(evaluated(resources.engine, tmp_path, models, batch)["forces"])
    np.testing.assert_allclose(batch.arrays["devi_f"], found, rtol=2e-4, atol=2e-5)
    cold = [heated(each, "fparam", 7.0) for each in batch]
    other = evaluated(resources.engine, tmp_path, models, Batch.of(cold))["forces"]
    assert np.abs(max_force_deviation(other) - found).max() > 0.01


def hot_spec(engine: dict[str, Any]) -> dict[str, Any]:
    """One stage with electrons at 1 K."""
    stage = {"name": "one", "systems": ["s"], "temperatures": [300], "electron_temperatures": [1]}
    return {
        "stages": [{**stage, "engine": engine}],
        "systems": {"s": {"structures": ["unused.xyz"], "fparam": [7.0]}},
        "labels": {"electron_temperature": "fparam"},
        "training": {"input": {"model": {"fitting_net": {"numb_fparam": 1}}}},
    }
