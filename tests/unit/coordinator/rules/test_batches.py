"""`training.batch_atoms: auto` is resolved once per campaign, in whatever order workers start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpstream.running.local_cluster import LocalCluster
from dpstream.services.coordinator.ledger.ledger import load_state, read_messages
from dpstream.services.coordinator.policy import decide
from dpstream.services.trainer.training_input import TrainingRun, build_input
from dpstream.shared import messages as m
from dpstream.shared.codec import encode
from dpstream.shared.programs import BACKENDS, gpu_backends
from dpstream.shared.runtime.device import chosen
from dpstream.shared.spec import Training
from dpstream.shared.spec.training import CPU_BATCH, GPU_BATCH
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.campaign_simulator import CampaignSimulator
from tests.support.campaigns.coordinator import CoordinatorHarness, small
from tests.support.campaigns.lossy_delivery import LossyDelivery, replayed
from tests.support.workers.nvml import H200, has_gpus

pytestmark = pytest.mark.usefixtures("no_log_lines")
WORLD = "world"


@pytest.fixture
def harness(tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(FolderStore(tmp_path))


def trainer(
    *devices: str, kind: type[m.ProcessStarted] = m.TrainerStarted, **programs: str
) -> m.ProcessStarted:
    return kind(
        id=f"up-{len(devices)}",
        time=1.0,
        worker="t",
        host="h",
        slots=1,
        queues=("train",),
        devices=devices,
        programs=programs,
    )


def resolved(harness: CoordinatorHarness) -> list[tuple[int, str]]:
    messages = read_messages(harness.store, WORLD)
    return [(each.batch_atoms, each.why) for each in messages if isinstance(each, m.BatchResolved)]


def trainings(harness: CoordinatorHarness) -> list[m.Train]:
    return [each for each in read_messages(harness.store, WORLD) if isinstance(each, m.Train)]


def finish(harness: CoordinatorHarness, **changes: Any) -> set[int | None]:
    """Batches of all trainings of a whole campaign."""
    harness.submit(small(**{"mode": "streaming"} | changes))
    state = harness.finish()
    assert state.finished is not None
    assert load_state(harness.store, WORLD).dumps() == state.dumps()
    return {command.batch_atoms for command in trainings(harness)}


def test_without_a_gpu_it_is_a_cpus(harness: CoordinatorHarness) -> None:
    harness.publish(trainer())
    assert finish(harness) == {CPU_BATCH}
    assert resolved(harness) == [(CPU_BATCH, "no trainer on a GPU has started")]


def test_what_any_worker_may_publish_decides_nothing(harness: CoordinatorHarness) -> None:
    harness.publish(trainer("NVIDIA H200", kind=m.WorkerStarted))
    assert finish(harness) == {CPU_BATCH}


def test_a_trainer_on_a_gpu_decides_for_all_members_and_versions(
    harness: CoordinatorHarness,
) -> None:
    harness.publish(trainer(), trainer("NVIDIA H200"), trainer("NVIDIA H200"))
    assert finish(harness) == {GPU_BATCH}
    assert resolved(harness) == [(GPU_BATCH, "t trains on NVIDIA H200")]
    assert len({command.version for command in trainings(harness)}) > 2
    first = trainings(harness)[0]
    assert (first.steps, first.rate) == (1000, 1.0), "the six frames fill no batch"


CPU_BUILD, GPU_BUILD = {"tensorflow-cpu": "2.21.0"}, {"tensorflow": "2.21.0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("programs", "batch"),
    [
        (CPU_BUILD, CPU_BATCH),
        (CPU_BUILD | {"torch": "2.11.0"}, CPU_BATCH),  # the campaign's backend is TensorFlow
        (GPU_BUILD, GPU_BATCH),
    ],
)
def test_a_trainer_whose_backend_is_built_for_cpus_leaves_the_batch_of_a_cpu(
    harness: CoordinatorHarness, programs: dict[str, str], batch: int
) -> None:
    harness.publish(trainer("NVIDIA H200", **programs))
    assert finish(harness) == {batch}


@pytest.mark.parametrize(
    ("programs", "backends"),
    [
        ({}, BACKENDS),  # a trainer that states none
        ({"deepmd-kit": "3.2.0"}, ()),
        ({"torch": "2.11.0+cpu", "jax": "0.9.0"}, ()),
        ({"torch": "2.11.0", "tensorflow-cpu": "2.21.0"}, ("pytorch",)),
        ({"torch": "2.11.0+cu130"}, ("pytorch",)),
        ({"jax": "0.9.0", "jax-cuda13-plugin": "0.9.0"}, ("jax",)),
    ],
)
def test_backends_built_for_gpus(programs: dict[str, str], backends: Iterable[str]) -> None:
    assert gpu_backends(programs) == {*backends}


def test_a_trainer_that_starts_while_the_first_labels_are_computed_decides(
    harness: CoordinatorHarness,
) -> None:
    open_campaign = harness.submit(small(mode="streaming"))
    assert not open_campaign.state.alive(m.Train)
    harness.publish(trainer("NVIDIA H200"))
    harness.step()
    assert open_campaign.state.batch_atoms == GPU_BATCH
    harness.restart().open_all()
    harness.finish()
    assert {command.batch_atoms for command in trainings(harness)} == {GPU_BATCH}


def test_a_trainer_that_starts_later_changes_nothing(harness: CoordinatorHarness) -> None:
    open_campaign = harness.submit(small(mode="streaming"))
    while not open_campaign.state.alive(m.Train):
        harness.work()
        harness.step()
    harness.publish(trainer("NVIDIA H200"))
    harness.finish()
    assert [number for number, _ in resolved(harness)] == [CPU_BATCH]
    assert {command.batch_atoms for command in trainings(harness)} == {CPU_BATCH}


def test_lockstep_does_not_depend_on_the_machines(harness: CoordinatorHarness) -> None:
    harness.publish(trainer("NVIDIA H200"))
    assert finish(harness, mode="lockstep") == {CPU_BATCH}
    assert resolved(harness) == [(CPU_BATCH, "as always in lockstep")]


def test_a_number_in_the_spec_is_not_repeated(harness: CoordinatorHarness) -> None:
    harness.publish(trainer("NVIDIA H200"))
    assert finish(harness, training={"members": 2, "batch_atoms": 64}) == {None}
    assert resolved(harness) == []
    assert all(b"batch_atoms" not in encode(command) for command in trainings(harness))


def test_the_first_resolution_counts_in_any_order() -> None:
    of = small(mode="streaming")
    campaign = LossyDelivery(CampaignSimulator(), of, seed=3, faults=0.2)
    gpu = m.BatchResolved(id="b", campaign=WORLD, time=2.0, batch_atoms=GPU_BATCH, why="a GPU")
    campaign.events += [gpu, gpu]
    state = campaign.run()
    assert state.finished is not None
    assert decide(state, gpu) == (state, ())
    assert len({each.batch_atoms for each in campaign.issued if isinstance(each, m.Train)}) == 1
    assert replayed(of, campaign.ledger).dumps() == state.dumps()


# ---------------------------------------------------------------------- learning rate and steps


def test_a_stated_number_changes_neither_rate_nor_epochs() -> None:
    training = Training(batch_atoms=320, epochs=30, min_steps=1)
    assert training.pace(None, atoms=32, frames=600) == 1.0
    assert training.steps(None, atoms=32, frames=600) == 30 * 600 / 10


def test_a_stated_batch_size_is_as_a_stated_number() -> None:
    own = {"training": {"training_data": {"batch_size": 4}}}
    training = Training.model_validate({"input": own, "epochs": 32, "min_steps": 1})
    assert training.pace(GPU_BATCH, atoms=32, frames=600) == 1.0
    assert training.steps(GPU_BATCH, atoms=32, frames=600) == 32 * 600


def test_auto_on_a_cpu_is_the_stated_number_32() -> None:
    stated = Training(batch_atoms=CPU_BATCH)
    for frames in (10, 1000, 100_000):
        assert Training().pace(CPU_BATCH, atoms=5, frames=frames) == 1.0
        steps = Training().steps(CPU_BATCH, atoms=5, frames=frames)
        assert steps == stated.steps(None, atoms=5, frames=frames)


@pytest.mark.parametrize(
    ("atoms", "frames", "ratio"),
    [(125, 500, 8.0), (1, 5000, 1000 / 32), (5, 70, 10.0), (2000, 500, 1.0), (125, 1, 1.0)],
)
def test_rate_and_steps_follow_the_frames_in_a_step(atoms: int, frames: int, ratio: float) -> None:
    """As many frames as the batch takes, and no more than there are."""
    training = Training(epochs=1000, max_steps=10**9)
    pace = training.pace(GPU_BATCH, atoms, frames)
    assert pace == pytest.approx(ratio ** (1 / 3))
    usual = training.steps(CPU_BATCH, atoms, frames)
    assert training.steps(GPU_BATCH, atoms, frames) == pytest.approx(usual / pace, abs=1)


def test_the_bounds_count_steps_of_32_atoms() -> None:
    training = Training(min_steps=1000, max_steps=8000)
    assert training.steps(GPU_BATCH, atoms=125, frames=8) == 500
    assert training.steps(GPU_BATCH, atoms=125, frames=10**6) == 4000


def test_the_input_has_the_batch_and_the_rate_of_the_command() -> None:
    run = TrainingRun(("H",), ("x",), steps=100, seed=1, member=0, batch_atoms=1000, rate=2.0)
    for training, expected in (
        (Training(), 0.01),
        (Training.model_validate({"input": {"learning_rate": {"start_lr": 0.002}}}), 0.004),
    ):
        document = build_input(training, run)
        assert document["learning_rate"]["start_lr"] == pytest.approx(expected)
        assert document["training"]["training_data"]["batch_size"] == "auto:1000"
    warm = build_input(Training(warm_start_lr=1e-3), replace(run, warm=True))
    assert warm["learning_rate"]["start_lr"] == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("device", "programs", "expected"),
    [
        ("auto", GPU_BUILD, {"tensorflow": "this machine has NVIDIA H200"}),
        ("auto", CPU_BUILD, {}),
        ("cpu", GPU_BUILD, {}),
    ],
)
def test_a_run_on_this_machine_knows_its_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    programs: dict[str, str],
    expected: dict[str, str],
) -> None:
    has_gpus(monkeypatch, H200)
    monkeypatch.setattr("dpstream.running.local_cluster.versions_of", lambda names: programs)
    cluster = LocalCluster(tmp_path, {}, chosen(device))
    try:
        assert cluster.coordinator.processes.gpu_trainers == expected
    finally:
        cluster.stop()
