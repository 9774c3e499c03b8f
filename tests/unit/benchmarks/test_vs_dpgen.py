"""The pure parts of the benchmark against DP-GEN."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from benchmarks.vs_dpgen import accuracy, dpgen_files, dpgen_log, dpstream_arm, dpstream_spec
from benchmarks.vs_dpgen.__main__ import kept
from benchmarks.vs_dpgen.ablation import occupancy, share
from benchmarks.vs_dpgen.outcome import Outcome
from benchmarks.vs_dpgen.report import Comparison, Run, compare, provenance, spread, verdict
from benchmarks.vs_dpgen.size import FULL, QUICK, Size
from dpstream.shared.messages import LabelsDone, MemberTrained, ModelsReady, TaskClaimed
from dpstream.shared.spec import TrustLevels
from dpstream.shared.values import Accepted, Committee, Ref

REF = Ref.to("models/a", b"")
SIZES = pytest.mark.parametrize("size", [FULL, QUICK], ids=lambda size: size.name)


def committee_ready(version: int, time: float) -> ModelsReady:
    return ModelsReady(
        id=f"ready-{version}",
        campaign="c",
        time=time,
        committee=Committee(version=version, models=(REF,), type_map=("C", "H")),
        manifest=REF,
        labels=0,
    )


def labels_done(task: str, time: float, *keys: str) -> LabelsDone:
    accepted = tuple(
        Accepted(key=key * 32, label=REF, reused=False, max_force=1.0, seconds=1.0) for key in keys
    )
    return LabelsDone(id=task, campaign="c", time=time, task=task, attempt=1, accepted=accepted)


def claimed(task: str, time: float) -> TaskClaimed:
    name = f"claim-{task}-{time}"
    return TaskClaimed(id=name, campaign="c", time=time, task=task, attempt=1, worker="w")


def outcome(**changes: object) -> Outcome:
    given = {
        "arm": "dpgen",
        "started": 0.0,
        "ready": 100.0,
        "ended": 110.0,
        "labels": 1,
        "models": (),
        "busy": ((10.0, 40.0), (10.0, 60.0), (90.0, 100.0)),
        "processes": {"dp": 4},
        "polling": 20.0,
    }
    return Outcome(**{**given, **changes})  # type: ignore[arg-type]


# ------------------------------------------------------------------- the same campaign twice


@SIZES
def test_both_sides_explore_and_label_the_same(size: Size) -> None:
    spec = dpstream_spec.spec(size, "lockstep", 1, "scratch")
    param = dpgen_files.param(size, spec.training, Path("/inputs"))
    *stages, ending = spec.stages
    assert len(stages) == len(param["model_devi_jobs"])
    for stage, job in zip(stages, param["model_devi_jobs"], strict=True):
        assert list(stage.temperatures) == job["temps"]
        assert (stage.md.steps, stage.md.every) == (job["nsteps"], job["trj_freq"])
        assert (stage.md.ensemble, stage.md.tau_t) == (job["ensemble"], job["taut"])
        assert stage.md.timestep == param["model_devi_dt"]
        assert stage.md.trajectories == size.structures
        assert stage.md.stop_after >= stage.md.steps // stage.md.every
    assert isinstance(spec.trust, TrustLevels)
    assert spec.trust.low == param["model_devi_f_trust_lo"]
    assert spec.trust.high == param["model_devi_f_trust_hi"]
    assert spec.selection.per_round == param["fp_task_max"]
    assert ending.md.trajectories == 1
    assert spec.audit.per_round == 0


@SIZES
def test_both_sides_train_with_the_same_input(size: Size) -> None:
    training = dpstream_spec.spec(size, "lockstep", 1, "scratch").training
    param = dpgen_files.param(size, training, Path("/inputs"))
    given = param["default_training_param"]
    assert given["training"]["numb_steps"] == size.train_steps
    assert training.min_steps == training.max_steps == size.train_steps
    assert training.members == param["numb_models"]
    assert training.warm == 0
    assert not any(key.startswith("training_reuse") for key in param)
    assert given["model"]["descriptor"]["neuron"] == [10, 20, 40]
    assert param["dp_compress"] is training.compress is True


@SIZES
def test_both_sides_begin_alike_in_the_models_before(size: Size) -> None:
    training = dpstream_spec.spec(size, "lockstep", 1, "reuse").training
    param = dpgen_files.param(size, training, Path("/inputs"))
    assert param["training_reuse_iter"] == 1
    assert param["training_reuse_numb_steps"] == round(size.train_steps * training.warm)
    assert param["training_reuse_start_lr"] == training.warm_start_lr
    assert training.cold_every > len(size.temperatures)


@SIZES
def test_dpgen_gets_two_jobs_in_every_stage(size: Size) -> None:
    commands = {"train": "dp", "model_devi": "lmp", "fp": "python fp.py"}
    machine = dpgen_files.machine(size, commands)
    for stage, tasks in (("train", 4), ("model_devi", size.structures), ("fp", size.labels)):
        resources = machine[stage][0]["resources"]
        assert -(-tasks // resources["group_size"]) == 2
        assert set(resources["envs"].values()) == {"1"}


def test_the_spec_is_one_round_per_stage() -> None:
    spec = dpstream_spec.spec(QUICK, "streaming", 3, "scratch")
    assert spec.mode == "streaming"
    assert spec.seed == 3
    assert not any(stage.repeat for stage in spec.stages)
    assert round(spec.training.final.steps_factor * QUICK.train_steps) == dpstream_spec.FINAL_STEPS


# ------------------------------------------------------------------------------ DP-GEN's clock


def test_processes_are_read_and_named() -> None:
    text = (
        "10.5\t20.25\t/v/bin/dp train input.json\n"
        "2.0\t3.0\t/v/bin/lmp -i input.lammps -v restart 0\n"
        "4.0\t5.0\t/v/bin/python /b/pyscf_fp.py\n"
        "20.3\t21.0\t/v/bin/dp compress\n"
    )
    ran = dpgen_log.processes(text)
    assert [process.kind for process in ran] == ["lmp", "fp", "dp", "dp"]
    assert dpgen_log.by_kind(ran) == {"lmp": 1, "fp": 1, "dp": 2}
    assert ran[2].started == 10.5


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(ValueError, match="/bin/true"):
        dpgen_log.processes("1\t2\t/bin/true\n")


def test_noticing_is_read_in_local_time() -> None:
    log = (
        "INFO:dpgen:---- iter.000000 task 01 ----\n"
        "2026-11-21 10:56:25,611 - INFO : job: 43191e3e 23004 finished\n"
        "2026-11-21 10:56:25,663 - INFO : check_all_finished: False\n"
    )
    expected = datetime(2026, 11, 21, 10, 56, 25, 611000).timestamp()
    assert dpgen_log.detected(log) == [pytest.approx(expected, abs=1e-3)]


def test_polling_counts_from_the_last_process_of_each_stage() -> None:
    ran = [
        dpgen_log.Process(0, 10, "dp"),
        dpgen_log.Process(0, 14, "dp"),
        dpgen_log.Process(32, 40, "fp"),
    ]
    # 12: one job is found finished while the other works; 31.01: the second job of one finding.
    assert dpgen_log.polling(ran, [12.0, 31.0, 31.01, 61.0]) == pytest.approx(17 + 21)


# ------------------------------------------------------------------------------ dpstream's clock


def test_the_last_committee_must_know_all_labels() -> None:
    done, ready = labels_done("t", 2.0, "a"), committee_ready(2, 3.0)
    assert dpstream_arm.committee([committee_ready(1, 1.0), done, ready]) is ready
    with pytest.raises(RuntimeError, match="no committee"):
        dpstream_arm.committee([committee_ready(1, 1.0), done])
    with pytest.raises(RuntimeError, match="no committee"):
        dpstream_arm.committee([])


def test_a_label_delivered_twice_counts_once() -> None:
    done = labels_done("t", 2.0, "a", "b")
    assert dpstream_arm.labels([done, done, labels_done("u", 3.0, "c")]) == 3


def test_busy_is_from_claim_to_last_result() -> None:
    trained = MemberTrained.model_construct(id="m", campaign="c", time=9.0, task="t", attempt=1)
    messages = [claimed("t", 1.0), claimed("t", 1.5), labels_done("u", 4.0, "a"), trained]
    assert dpstream_arm.busy([*messages, claimed("u", 2.0), claimed("never-ended", 3.0)]) == (
        (1.0, 9.0),
        (2.0, 4.0),
    )


# ------------------------------------------------------------------------------------ ablation


def test_occupancy_adds_up() -> None:
    busy = [(10.0, 40.0), (10.0, 60.0), (20.0, 30.0), (90.0, 130.0)]
    none, one, more = occupancy(busy, 0.0, 100.0)
    assert (none, one, more) == (10 + 30, 20 + 10, 30)
    assert occupancy([], 5.0, 8.0) == (3.0, 0.0, 0.0)


def test_shares_of_the_wall_time() -> None:
    found = share(outcome(), {"dp": 5.0})
    assert found.polling == 20
    assert found.between == pytest.approx(10 + 30 - 20)
    assert found.barrier == pytest.approx((20 + 10) / 2)
    assert found.cold == pytest.approx(4 * 5.0 / 2)


# ------------------------------------------------------------------------------------ accuracy


MODELS = 4


def errors(scale: float, seed: int = 0, count: int = 10) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    varied = np.tile(random.uniform(1, 2, count), (MODELS, 1))
    return {"50 K": scale * varied, "300 K": scale * np.ones((MODELS, count))}


def test_frames_are_averaged_by_trajectory() -> None:
    means = accuracy.by_trajectory(np.array([[1.0, 3.0, 10.0], [0.0, 2.0, 5.0]]), [0, 0, 4])
    assert means.tolist() == [[2.0, 10.0], [1.0, 5.0]]


def test_errors_weigh_temperatures_alike() -> None:
    found = {"50 K": np.array([1.0, 1.0]), "300 K": np.array([3.0])}
    assert accuracy.overall(found) == pytest.approx(np.sqrt(2))


def test_the_ratio_of_one_committee_with_itself_is_one() -> None:
    same = [errors(1.0)]
    assert accuracy.ratio(same, same) == pytest.approx((1.0, 1.0, 1.0))
    value, low, high = accuracy.ratio([errors(4.0)], same)
    assert (value, low, high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_widens_with_differing_trajectories() -> None:
    value, low, high = accuracy.ratio([errors(1.0, 1)], [errors(1.0, 2)])
    assert low < value < high
    assert low < 1 < high


def test_the_interval_knows_that_trainings_differ() -> None:
    uneven = {name: values.copy() for name, values in errors(1.0).items()}
    for values in uneven.values():
        values[0] *= 9  # one member of the four came out badly
    value, low, high = accuracy.ratio([uneven], [errors(1.0)])
    assert value == pytest.approx(np.sqrt(3))
    assert low == pytest.approx(1.0)
    assert high > 2


def test_an_arm_that_has_run_is_not_run_again(tmp_path: Path) -> None:
    def never() -> Outcome:
        raise AssertionError("run again")

    first = Outcome("dpgen", 0.0, 5.0, 6.0, 3, ("a.pb",), ((0.0, 1.0),), {"dp": 2}, 1.0)
    assert kept(tmp_path / "dpgen.json", lambda: first) == first
    assert kept(tmp_path / "dpgen.json", never) == first


def test_the_interval_knows_of_seeds() -> None:
    ours, theirs = [errors(1.0), errors(4.0)], [errors(1.0), errors(1.0)]
    value, low, high = accuracy.ratio(ours, theirs)
    assert value == pytest.approx(np.sqrt(2.5), rel=1e-6)
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(2.0)


# -------------------------------------------------------------------------------------- report


def test_speed_is_claimed_only_at_equal_error() -> None:
    good = Comparison("lockstep", (3.0, 4.0, 3.5), (0.98, 0.92, 1.04))
    assert "3.50 [3.00, 4.00]" in verdict(good, FULL)
    assert "claimed: 3.5 times as fast" in verdict(good, FULL)
    assert "no speedup claimed: reduced size" in verdict(good, QUICK)
    bad = Comparison("lockstep", (3.0,), (0.98, 0.92, 1.05))
    assert not bad.claimed
    assert "no speedup claimed: upper bound" in verdict(bad, FULL)


def test_arms_are_compared_seed_by_seed() -> None:
    def run(wall: float) -> Run:
        measured = outcome(ready=wall)
        return Run(measured, errors(1.0), share(measured, {}))

    (found,) = compare({"dpgen": [run(300), run(200)], "lockstep": [run(100), run(100)]})
    assert found.speed == (3.0, 2.0)
    (found,) = compare({"dpgen": [run(300)], "lockstep": [run(100), run(50)], "streaming": []})
    assert found.speed == (3.0,)
    assert compare({"lockstep": [run(100)]}) == []


def test_what_drove_the_held_out_dynamics_is_said() -> None:
    assert "GFN2-xTB, not the method of the labels" in provenance(QUICK)
    assert "PBE/def2-SVP itself" in provenance(FULL)
    assert FULL.held_out.trajectories >= 10
    assert FULL.held_out.spacing >= 0.1


def test_spread() -> None:
    assert spread([1.234]) == "1.23"
    assert spread([1.0, 3.0, 2.0], 0) == "2 [1, 3]"
