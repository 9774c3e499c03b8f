"""What happens often costs the same with many running tasks and processes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import NoReturn

import pytest

from dpstream.services.coordinator.decisions import Decisions
from dpstream.services.coordinator.fleet.processes import LOOK_EVERY, REMEMBERED, Processes
from dpstream.services.coordinator.garbage import NEVER, collect_rarely, no_full_collections
from dpstream.services.coordinator.ledger.ledger import Ledger
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.rules.labels import check_reused
from dpstream.services.coordinator.simulation.store import MemoryStore
from dpstream.services.coordinator.state import LabelCheck, State
from dpstream.services.coordinator.task_processes import TaskProcesses
from dpstream.services.coordinator.task_queue import TaskQueue
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.lossy_delivery import LossyDelivery, resumed


class Leases(dict[str, float]):
    """Leases that must not be looked through."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("looked through all leases")


class Checks(dict[str, LabelCheck]):
    """Checks that must not be looked through."""

    def items(self) -> NoReturn:
        raise AssertionError("looked through all checks")

    __iter__ = keys = values = items


def test_the_tasks_of_ended_processes_are_found_without_looking_through_the_leases() -> None:
    campaign = OpenCampaign(Ledger(MemoryStore(), "c", 1), State(spec=spec()), TaskQueue(1.0))
    campaign.leases = Leases({f"task-{number}": 1.0 for number in range(4)})
    for number, process in enumerate(("one", "two", None, "one")):
        campaign.processes[f"task-{number}"] = process
    assert sorted(campaign.orphaned({"one", "other"})) == ["task-0", "task-3"]
    assert campaign.of_unknown_process(9) == []


def test_of_which_tasks_the_process_is_unknown() -> None:
    campaign = OpenCampaign(Ledger(MemoryStore(), "c", 1), State(spec=spec()), TaskQueue(1.0))
    campaign.leases = {f"task-{number}": 1.0 for number in range(4)}
    campaign.processes["task-1"] = None
    assert campaign.of_unknown_process(9) == ["task-0", "task-2", "task-3"]
    assert campaign.of_unknown_process(2) == ["task-0", "task-2"]


def test_a_task_belongs_to_the_process_that_named_it_last() -> None:
    processes = TaskProcesses()
    for process in ("one", "two"):
        processes["task"] = process
    assert (processes.tasks_of({"one"}), processes.tasks_of({"two"})) == ([], ["task"])
    assert (processes["task"], processes.names) == ("two", {"two"})
    processes.forget("task")
    assert ("task" in processes, len(processes), processes.names) == (False, 0, frozenset())


def test_a_list_of_the_same_ended_processes_is_no_news() -> None:
    processes = Processes()
    processes.end({"one", "two"}, 1000.0, up={"three"})
    before = processes.ended
    processes.end({"one", "two"}, 1001.0, up={"three"})
    assert processes.ended is before
    processes.end({"one"}, 1002.0, up={"two", "three"})
    assert processes.ended == {"one"}


def test_an_ended_process_is_remembered_after_its_last_list() -> None:
    processes = Processes()
    for now in (0.0, 1000.0):
        processes.end({"one"}, now)
    processes.end((), 1000.0 + REMEMBERED)
    assert processes.ended == {"one"}
    processes.end((), 1000.0 + REMEMBERED + LOOK_EVERY)
    assert processes.ended == frozenset()


def test_issued_checks_are_not_looked_through() -> None:
    campaign = LossyDelivery(
        CampaignSimulator(writer=lambda key: "vasp"),
        spec(mode="streaming", labels={"bundle": 3, "check_reused": 1.0}),
    )
    campaign.until(lambda state: len(state.labels.checks) > 2)
    labels = replace(campaign.state.labels, checks=Checks(campaign.state.labels.checks))
    state = replace(campaign.state, labels=labels)
    decisions = Decisions(state, state, resumed(1))
    check_reused(decisions)
    assert decisions.decided == []


@pytest.fixture
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("thresholds")
def test_collections_stay_rare_after_a_ledger_was_read() -> None:
    collect_rarely()
    rarely = gc.get_threshold()
    with no_full_collections():
        assert gc.get_threshold() == (*rarely[:2], NEVER)
    assert gc.get_threshold() == rarely
    assert rarely > (700, 10, 10)
