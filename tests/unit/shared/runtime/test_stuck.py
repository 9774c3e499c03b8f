"""Tasks without progress: their heartbeats end, then they do, and their worker goes on."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.labeler.runner import run
from dpstream.shared import activity
from dpstream.shared import messages as m
from dpstream.shared.codec import kind_of
from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.context import Context
from dpstream.shared.settings import WorkerSettings, read_settings
from tests.support.workers.worker import WorkerHarness, label, patient, succeed

pytestmark = pytest.mark.slow

TOY = Path(__file__).parents[3] / "support" / "workers" / "toy_child.py"
LIMIT = 1.5
HURRY = {"heartbeat_seconds": 0.1, "stuck_after": {"label": LIMIT}}


@pytest.fixture(autouse=True)
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "SAMPLE_SECONDS", 0.1)
    monkeypatch.setattr(activity, "WORK_SECONDS", 0.1)


@pytest.fixture
def explorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExplorerResources]:
    """One whose child process is a toy."""
    folder = tmp_path / "modules"
    folder.mkdir()
    shutil.copy(TOY, folder)
    monkeypatch.syspath_prepend(folder)
    resources = ExplorerResources(tmp_path / "explorer", warm=False)
    resources.engine.module = "toy_child"
    yield resources
    resources.close()


def ending(workers: WorkerHarness, handler: Callable[..., Any]) -> m.Message:
    """How a task by this handler ends. Its worker then does another one."""
    done = threading.Event()

    def first(resources: Any, command: Any, context: Context) -> Any:
        if command.task != "t1":
            return succeed(resources, command, context)
        try:
            return handler(resources, command, context)
        finally:
            done.set()

    workers.worker(first, **HURRY)
    workers.send(label())
    event = final(workers)
    assert done.is_set()
    workers.send(label("t2"))
    assert isinstance(final(workers), m.LabelsDone)
    return event


def final(workers: WorkerHarness) -> m.Message:
    while True:
        event: m.Message = workers.next_event()
        if not isinstance(event, m.TaskClaimed | m.TaskHeartbeat):
            return event


def is_stuck(event: m.Message) -> bool:
    """Whether it says so, and counts as an attempt."""
    return (
        isinstance(event, m.TaskFailed)
        and not event.permanent
        and event.reason == (f"Stuck: no progress for {LIMIT:g} s")
    )


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_heartbeats_end_with_the_progress(workers: WorkerHarness) -> None:
    began = time.monotonic()
    assert is_stuck(ending(workers, patient))
    assert LIMIT <= time.monotonic() - began < 10 * LIMIT


def test_progress_keeps_a_task_alive(workers: WorkerHarness) -> None:
    def slow(resources: Any, command: Any, context: Context) -> Any:
        for step in range(8):
            context.check()
            context.progress(f"step {step}")
            time.sleep(LIMIT / 4)
        return succeed(resources, command, context)

    assert isinstance(ending(workers, slow), m.LabelsDone)


def test_an_explorer_whose_child_hangs(workers: WorkerHarness, explorer: ExplorerResources) -> None:
    pids: list[int] = []

    def handler(resources: Any, command: Any, context: Context) -> Any:
        pids.append(explorer.call("pid", {}, context))
        return explorer.call("sleep", {"seconds": 600}, context)

    assert is_stuck(ending(workers, handler))
    assert not is_running(pids[0])


def test_an_explorer_whose_child_loops(workers: WorkerHarness, explorer: ExplorerResources) -> None:
    """The processor time of an engine is no progress: its steps are."""
    assert is_stuck(ending(workers, lambda _, __, context: explorer.call("loop", {}, context)))


def test_the_steps_of_a_child_are_progress(
    workers: WorkerHarness, explorer: ExplorerResources
) -> None:
    def handler(resources: Any, command: Any, context: Context) -> Any:
        steps = {"count": 20, "seconds": LIMIT / 10}
        assert explorer.call("work", steps, context) == "worked"
        return succeed(resources, command, context)

    assert isinstance(ending(workers, handler), m.LabelsDone)


def program(folder: Path, script: str) -> Callable[..., Any]:
    """A labeling program in Python."""

    def handler(resources: Any, command: Any, context: Context) -> Any:
        status = run(
            [sys.executable, "-c", script],
            folder,
            cores=1,
            seconds=60,
            tick=context.check,
            progressed=context.progressed,
        )
        assert status == 0
        return succeed(resources, command, context)

    return handler


SLEEP = "import time; time.sleep(600)"
ASLEEP_IN_A_SCRIPT = "import subprocess; subprocess.run(['sleep', '601'])"
COMPUTE = f"import time; t = time.process_time() + {2 * LIMIT}\nwhile time.process_time() < t: pass"
COMPUTE_BELOW = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {COMPUTE!r}])"
IN_A_SESSION = (
    f"import subprocess, sys; "
    f"subprocess.run([sys.executable, '-c', {COMPUTE!r}], start_new_session=True)"
)
PRINT = f"import time\nfor i in range(20): print(i, flush=True); time.sleep({LIMIT / 10})"


@pytest.mark.parametrize("script", [SLEEP, ASLEEP_IN_A_SCRIPT])
def test_a_program_that_sleeps(workers: WorkerHarness, tmp_path: Path, script: str) -> None:
    assert is_stuck(ending(workers, program(tmp_path, script)))


@pytest.mark.soak  # a machine with much else to do may give the program no time for seconds
@pytest.mark.parametrize("script", [COMPUTE, COMPUTE_BELOW, IN_A_SESSION, PRINT])
def test_a_program_at_work(workers: WorkerHarness, tmp_path: Path, script: str) -> None:
    """It computes without a word, itself or by a process that it started, or it writes."""
    assert isinstance(ending(workers, program(tmp_path, script)), m.LabelsDone)


def test_ranks_on_other_nodes_may_be_silent(workers: WorkerHarness, tmp_path: Path) -> None:
    launcher = tmp_path / "srun"
    launcher.write_text(f"#!/bin/sh\nsleep {2 * LIMIT}\n")
    launcher.chmod(0o755)
    wrapper = f"import subprocess; subprocess.run([{str(launcher)!r}], check=True)"
    assert isinstance(ending(workers, program(tmp_path, wrapper)), m.LabelsDone)


def test_folders_may_be_removed_while_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "SAMPLE_SECONDS", 0.0)
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            for name in "abcd":
                (tmp_path / name / "inner").mkdir(parents=True)
                (tmp_path / name / "inner" / "file").touch()
            for name in "abcd":
                shutil.rmtree(tmp_path / name)

    program = threading.Thread(target=churn)
    program.start()
    look = activity.Activity(lambda: None, tmp_path)
    try:
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            look.seen()
    finally:
        ended.set()
        program.join()
    (tmp_path / "file").write_bytes(b"x")
    assert look.seen()
    assert not look.seen()


def test_the_limits_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_BROKER", "amqp://a:b@c/")
    monkeypatch.setenv("DPSTREAM_STORE", "/s")
    stated = {kind_of(kind): kind.STUCK_AFTER for kind in m.COMMANDS}
    assert read_settings(WorkerSettings).longest_pauses == stated
    monkeypatch.setenv("DPSTREAM_STUCK_AFTER", "label=7200, train=60")
    monkeypatch.setenv("DPSTREAM_LEASE_SECONDS", "2000")
    limits = read_settings(WorkerSettings).longest_pauses
    assert (limits["label"], limits["train"], limits["select"], limits["explore"]) == (
        7200.0,
        2000.0,
        2000.0,
        3600.0,
    )
    for wrong in ("label", "label=x", "lable=60", "label=0", "label=60,label=70", "60"):
        monkeypatch.setenv("DPSTREAM_STUCK_AFTER", wrong)
        with pytest.raises(
            SpecError, match=r"DPSTREAM_STUCK_AFTER: .*must be KIND=SECONDS,…; kinds"
        ):
            read_settings(WorkerSettings)
