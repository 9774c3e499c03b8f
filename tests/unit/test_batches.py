"""`training.batch_atoms: auto` is resolved once per campaign, whoever starts when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpstream.services.coordinator.ledger.ledger import load_state, read_messages
from dpstream.services.coordinator.policy import decide
from dpstream.shared import messages as m
from dpstream.shared.codec import encode
from dpstream.shared.spec.training import CPU_BATCH, GPU_BATCH
from dpstream.shared.store.folder import FolderStore
from tests.support.campaign_simulator import CampaignSimulator
from tests.support.coordinator import CoordinatorHarness, small
from tests.support.lossy_delivery import LossyDelivery, replayed

pytestmark = pytest.mark.usefixtures("no_log_lines")
WORLD = "world"


@pytest.fixture
def harness(tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(FolderStore(tmp_path))


def trainer(*devices: str, queue: str = "train") -> m.WorkerStarted:
    return m.WorkerStarted(
        id=f"up-{queue}-{len(devices)}",
        time=1.0,
        worker="t",
        host="h",
        slots=1,
        queues=(queue,),
        devices=devices,
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
    harness.publish(trainer(), trainer("NVIDIA H200", queue="explore"))
    assert finish(harness) == {CPU_BATCH}
    assert resolved(harness) == [(CPU_BATCH, "no trainer on a GPU has started")]


def test_a_trainer_on_a_gpu_decides_for_all_members_and_versions(
    harness: CoordinatorHarness,
) -> None:
    harness.publish(trainer(), trainer("NVIDIA H200"), trainer("NVIDIA H200"))
    assert finish(harness) == {GPU_BATCH}
    assert resolved(harness) == [(GPU_BATCH, "t trains on NVIDIA H200")]
    assert len({command.version for command in trainings(harness)}) > 2


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
