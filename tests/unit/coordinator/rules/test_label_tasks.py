"""How many frames a label task has."""

from __future__ import annotations

from typing import Any

import pytest

from dpstream.services.coordinator.apply.labels import request_labels
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.rules.labels import _bundles
from dpstream.services.coordinator.state import KnownFrame, State, Task
from dpstream.shared.values import FrameRef
from tests.support.campaigns.campaign_simulator import key, ref, spec
from tests.support.workers.worker import label


def sizes(
    frames: int, seconds: float, busy: int = 0, mode: str = "streaming", **labels: Any
) -> list[int]:
    """Frames of each task, once labels took `seconds` each and `busy` labelers have a task."""
    state = State(spec=spec(mode=mode, labels=labels))
    known = (
        KnownFrame(FrameRef(batch=ref("b"), index=n, key=key("b", n)), "train")
        for n in range(frames)
    )
    state = request_labels(state, known)
    times = replace(state.labels, computed=10, microseconds=round(10_000_000 * seconds))
    state = replace(state, labels=times)
    for number in range(busy):
        state = state.with_task(Task(label(f"running{number}"), status="running"))
    return [len(refs) for _, refs in _bundles(state)]


def test_a_long_calculation_is_a_task_of_its_own() -> None:
    assert sizes(4, seconds=36.0) == [1, 1, 1, 1]


def test_short_ones_share_a_task_of_about_a_second() -> None:
    assert sizes(100, seconds=0.1)[:3] == [10, 10, 10]


def test_the_last_tasks_are_smaller_so_that_all_workers_end_together() -> None:
    assert sizes(20, seconds=0.01) == [10, 5, 3, 1, 1]


def test_no_labeler_stays_idle_for_the_sake_of_large_tasks() -> None:
    assert sizes(16, seconds=0.01, busy=8)[0] == 1
    assert len(sizes(64, seconds=0.01, busy=8)) >= 16


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_a_given_number_is_an_upper_bound(seconds: float) -> None:
    assert max(sizes(50, seconds, bundle=4)) == 4


def test_before_the_first_label_a_frame_is_a_task() -> None:
    assert sizes(3, seconds=0.0) == [1, 1, 1]


def test_in_a_reproducible_campaign_times_do_not_matter() -> None:
    assert sizes(6, seconds=0.01, mode="lockstep", bundle=3) == [3, 3]
    assert sizes(2, seconds=0.01, mode="lockstep") == [1, 1]
