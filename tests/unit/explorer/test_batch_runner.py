"""Threads that share the child process of a batch, here one without physics."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpstream.services.explorer.batched.runner import BatchRunner
from dpstream.shared.errors import EngineCrashed, EngineError, Stopped, Stuck
from dpstream.shared.runtime.child_process import ChildProcess

pytestmark = pytest.mark.slow


class Task:
    """The part of a `Context` that the runner uses."""

    def __init__(self, max_seconds: float = 60.0) -> None:
        self.command = SimpleNamespace(max_seconds=max_seconds)
        self.stopping = threading.Event()
        self.steps = 0
        self.stuck = False

    def progressed(self) -> None:
        self.steps += 1

    def check(self) -> None:
        if self.stopping.is_set():
            raise Stopped("cancelled")
        if self.stuck:
            raise Stuck("no progress")


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[BatchRunner]:
    runner = BatchRunner(tmp_path / "batch", threads=1)
    runner.child = ChildProcess("tests.support.workers.counting_batch", tmp_path / "batch")
    yield runner
    runner.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def advance(runner: BatchRunner, name: str, checks: int, task: Any = None) -> Any:
    return runner.call("advance", name, {"checks": checks}, task or Task())


def put_and_advance(runner: BatchRunner, name: str, checks: int, task: Any = None) -> Any:
    runner.call("put", name, {}, Task())
    return advance(runner, name, checks, task)


def submitted(
    runner: BatchRunner, threads: ThreadPoolExecutor, name: str, checks: int = 100_000
) -> Future[Any]:
    """A replica that moves, in a thread of its own."""
    runner.call("put", name, {}, Task())
    future = threads.submit(advance, runner, name, checks)
    while name not in runner._advancing:
        time.sleep(0.01)
    return future


def test_replicas_of_several_threads_move_together_and_a_place_is_filled_again(
    runner: BatchRunner, threads: ThreadPoolExecutor
) -> None:
    long = submitted(runner, threads, "long", checks=150)
    for name in ("a", "b", "c"):
        runner.call("put", name, {}, Task())
        assert advance(runner, name, 5) == 2
        runner.end(name)
    assert long.result() == 1
    assert runner.call("put", "last", {}, Task()) == 2, "replicas that ended are gone"


def test_one_thread_alone(runner: BatchRunner) -> None:
    runner.call("put", "a", {}, Task())
    assert [advance(runner, "a", 3), advance(runner, "a", 1)] == [1, 1]


def test_a_crash_ends_all_that_move_and_nothing_afterwards(
    runner: BatchRunner, threads: ThreadPoolExecutor
) -> None:
    moving = [submitted(runner, threads, name) for name in "ab"]
    with pytest.raises(EngineCrashed):
        put_and_advance(runner, "dies", 1)
    for each in moving:
        with pytest.raises(EngineCrashed):
            each.result()
    assert runner.call("put", "next", {}, Task()) == 1
    assert advance(runner, "next", 2) == 1


@pytest.mark.parametrize(("end", "error"), [("dies", EngineCrashed), ("fails", EngineError)])
def test_a_replica_between_segments_ends_with_the_batch_and_harms_no_later_one(
    runner: BatchRunner, threads: ThreadPoolExecutor, end: str, error: type[Exception]
) -> None:
    runner.call("put", "waits", {}, Task())
    with pytest.raises(error) as cause:
        put_and_advance(runner, end, 1)
    later = submitted(runner, threads, "later", checks=50)
    with pytest.raises(error, match=re.escape(str(cause.value))):
        advance(runner, "waits", 1)
    assert later.result() == 1


def test_an_error_within_a_segment_ends_all_that_move(
    runner: BatchRunner, threads: ThreadPoolExecutor
) -> None:
    moving = submitted(runner, threads, "a")
    with pytest.raises(EngineError, match="no such model"):
        put_and_advance(runner, "fails", 1)
    with pytest.raises(EngineError, match="no such model"):
        moving.result()


def test_an_error_of_one_call_does_not_concern_the_others(
    runner: BatchRunner, threads: ThreadPoolExecutor
) -> None:
    moving = submitted(runner, threads, "a", checks=40)
    with pytest.raises(EngineError, match="unexpected keyword"):
        runner.call("put", "b", {"colour": "red"}, Task())
    assert moving.result() == 1


def test_a_stopped_task_leaves_and_its_neighbour_continues(
    runner: BatchRunner, threads: ThreadPoolExecutor
) -> None:
    task = Task()
    runner.call("put", "a", {}, task)
    stopped = threads.submit(advance, runner, "a", 100_000, task)
    neighbour = submitted(runner, threads, "b", checks=100)
    task.stopping.set()
    with pytest.raises(Stopped):
        stopped.result()
    assert neighbour.result() == 1


def test_a_child_that_hangs_is_killed_after_the_time_limit_of_its_tasks(
    runner: BatchRunner,
) -> None:
    with pytest.raises(EngineCrashed):
        put_and_advance(runner, "hangs", 1, Task(max_seconds=1.0))
    assert runner.call("put", "a", {}, Task()) == 1


def test_a_child_that_hangs_is_killed_as_soon_as_a_task_is_stuck(
    runner: BatchRunner, threads: ThreadPoolExecutor
) -> None:
    task = Task()
    moving = submitted(runner, threads, "a")
    hanging = threads.submit(put_and_advance, runner, "hangs", 1, task)
    task.stuck = True
    with pytest.raises(Stuck):
        hanging.result()
    with pytest.raises(EngineCrashed, match="hung"):
        moving.result()
    assert runner.call("put", "next", {}, Task()) == 1


def test_every_segment_is_progress_of_all_that_move(runner: BatchRunner) -> None:
    task = Task()
    runner.call("put", "a", {}, task)
    advance(runner, "a", 10, task)
    assert task.steps == 10


def test_closing_ends_a_batch_at_once(runner: BatchRunner, threads: ThreadPoolExecutor) -> None:
    moving = submitted(runner, threads, "a")
    runner.close()
    with pytest.raises(Stopped):
        moving.result()
    assert runner.child.pid is None


def test_nothing_starts_before_it_is_used(tmp_path: Path) -> None:
    runner = BatchRunner(tmp_path, threads=1)
    runner.end("nobody")
    runner.close()
    assert runner.child.pid is None
