"""The engine child, driven with an engine of the standard library alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest

from dpstream.deploy.devcluster.processes import ProcessRecord
from dpstream.shared.errors import (
    EngineCrashed,
    EngineError,
    EngineKilled,
    MachineFault,
    Permanent,
    Stopped,
)
from dpstream.shared.runtime import child_process as engine_module
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import chosen
from dpstream.shared.runtime.scratch import STEM
from tests.support.workers.nvml import H200, has_gpus
from tests.support.workers.worker import stop_after

pytestmark = pytest.mark.slow

TOY = Path(__file__).parents[3] / "support" / "workers" / "toy_child.py"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toys, where this process finds them."""
    folder = tmp_path / "modules"
    folder.mkdir()
    shutil.copy(TOY, folder)
    (folder / "forking_child.py").write_text("from toy_child import *\nFORK = True\n")
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ChildProcess]:
    engine = ChildProcess("toy_child", tmp_path / "scratch")
    yield engine
    engine.kill()


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[ChildProcess]:
    engine = ChildProcess("forking_child", tmp_path / "forking")
    yield engine
    engine.kill()


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    return ProcessRecord.find(pid) is not None


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize(
    "value",
    [None, True, 0.1 + 0.2, 1e-300, -(2**62), "ä\n\udc80 📎", [1, [2]], {"a": {"b": None}}],
    ids=repr,
)
def test_values_come_back_as_they_went(engine: ChildProcess, value: object) -> None:
    assert engine.call("echo", {"value": value}) == value


def test_large_requests_and_replies_pass(engine: ChildProcess) -> None:
    value = "x" * 3_000_000
    assert engine.call("echo", {"value": value}) == value


def test_the_child_stays_warm(engine: ChildProcess) -> None:
    assert [engine.call("count", {}) for _ in range(3)] == [1, 2, 3]
    assert engine.call("pid", {}) == engine.pid


def test_an_exception_is_the_engine_saying_no(engine: ChildProcess) -> None:
    first = engine.call("pid", {})
    with pytest.raises(EngineError, match="lost atoms") as raised:
        engine.call("refuse", {"text": "lost atoms"})
    assert raised.value.kind == "LookupError"
    assert "toy_child.py" in raised.value.trace
    assert "raise LookupError(text)" in raised.value.trace
    assert engine.call("pid", {}) == first


@pytest.mark.parametrize(
    ("operation", "arguments", "kind"),
    [
        ("no_such_operation", {}, "KeyError"),
        ("echo", {"wrong": 1}, "TypeError"),
        ("unserializable", {}, "TypeError"),
    ],
)
def test_a_faulty_call_is_no_crash(
    engine: ChildProcess, operation: str, arguments: dict[str, object], kind: str
) -> None:
    with pytest.raises(EngineError) as raised:
        engine.call(operation, arguments)
    assert raised.value.kind == kind
    assert engine.call("count", {}) == 1


def test_a_fault_of_the_machine_renews_the_child(engine: ChildProcess) -> None:
    """After an error a CUDA context may be unusable for good."""
    first = engine.call("pid", {})
    with pytest.raises(MachineFault, match="RuntimeError: CUDA error: out of memory"):
        engine.call("exhaust", {})
    assert engine.pid is None
    assert engine.call("pid", {}) != first


def test_the_child_is_renewed_after_some_calls(tmp_path: Path) -> None:
    engine = ChildProcess("toy_child", tmp_path / "renewed", renew_after=2)
    try:
        assert [engine.call("count", {}) for _ in range(5)] == [1, 2, 1, 2, 1]
    finally:
        engine.kill()


def test_a_started_child_serves_the_first_call(engine: ChildProcess) -> None:
    engine.start()
    started = engine.pid
    engine.start()
    assert engine.call("pid", {}) == started


# ----------------------------------------------------------------------------------------- crashes


def test_a_killed_child_is_a_crash_and_the_next_call_works(engine: ChildProcess) -> None:
    first = engine.call("pid", {})
    with pytest.raises(EngineCrashed, match="last words"):
        engine.call("die", {})
    assert engine.pid is None
    assert engine.call("pid", {}) != first


def test_a_child_killed_while_idle_is_replaced(engine: ChildProcess) -> None:
    first = engine.call("pid", {})
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not is_running(first))
    assert engine.call("pid", {}) != first


def test_a_child_that_something_else_kills_ran_out_of_memory(
    engine: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPSTREAM_POOL", "spot")
    monkeypatch.setattr("dpstream.shared.runtime.child_process.YIELD_SECONDS", 0.1)
    with pytest.raises(EngineKilled, match="out of memory on spot"):
        engine.call("die", {"number": signal.SIGKILL}, tick=lambda: None)
    assert engine.call("count", {}) == 1


def test_a_child_that_ends_just_before_its_worker_is_stopped_is_no_crash(
    engine: ChildProcess,
) -> None:
    """A batch system signals all processes of a job."""
    with pytest.raises(Stopped):
        engine.call("die", {"number": signal.SIGTERM}, tick=stop_after(0.5))
    assert engine.pid is None


def test_a_segmentation_fault_says_where(engine: ChildProcess) -> None:
    with pytest.raises(EngineCrashed, match="toy_child"):
        engine.call("die", {"number": signal.SIGSEGV})


def test_an_exit_is_a_crash(engine: ChildProcess) -> None:
    with pytest.raises(EngineCrashed):
        engine.call("leave", {"status": 3})


def test_a_module_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    engine = ChildProcess("no_such_engine", tmp_path / "scratch")
    with pytest.raises(EngineCrashed, match="No module named 'no_such_engine'"):
        engine.call("echo", {"value": 1})
    with pytest.raises(EngineCrashed):  # a request longer than the pipe, to nobody
        engine.call("echo", {"value": "x" * 3_000_000})


def test_a_time_limit_ends_the_child(engine: ChildProcess) -> None:
    first = engine.call("pid", {})
    began = time.monotonic()
    with pytest.raises(EngineCrashed, match="time limit"):
        engine.call("sleep", {"seconds": 60}, seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert not is_running(first)
    assert engine.call("sleep", {"seconds": 0}, seconds=30) == "woken"


def test_what_a_tick_raises_ends_the_child(
    engine: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.child_process.TICK_SECONDS", 0.05)
    first = engine.call("pid", {})
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 2:
            raise Stopped("cancelled")

    with pytest.raises(Stopped):
        engine.call("sleep", {"seconds": 60}, tick=tick)
    assert not is_running(first)
    assert engine.call("count", {}) == 1


def test_what_the_child_started_ends_with_it(engine: ChildProcess) -> None:
    spawned = engine.call("spawn", {})
    assert is_running(spawned)
    engine.kill()
    eventually(lambda: not is_running(spawned))


@pytest.mark.parametrize(
    "text",
    ["no JSON\n", "[]\n", "{}\n", "1\n", "[" * 100_000 + "\n", "\xff\n"],
    ids=lambda t: t[:5],
)
def test_a_garbled_reply_is_a_crash(engine: ChildProcess, text: str) -> None:
    with pytest.raises(EngineCrashed):
        engine.call("garble", {"text": text})
    assert engine.call("count", {}) == 1


def test_two_replies_to_one_request_are_never_shifted(engine: ChildProcess) -> None:
    forged = '{"number": 1, "result": "forged"}\n'
    with suppress(EngineCrashed):  # both lines read at once
        assert engine.call("garble", {"text": forged}) == "forged"
    with suppress(EngineCrashed):  # the second line read now
        assert engine.call("echo", {"value": "honest"}) == "honest"
    assert engine.call("echo", {"value": "honest"}) == "honest"


def test_an_endless_reply_is_cut(engine: ChildProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_REPLY", 1_000_000)
    with pytest.raises(EngineCrashed, match="more than 1000000 bytes"):
        engine.call("flood", {"size": 2_000_000})
    assert len(engine.call("flood", {"size": 900_000})) == 900_000


def test_the_end_of_the_log_is_kept(engine: ChildProcess) -> None:
    engine.call("write_lines", {"text": "\n".join(f"line {n}" for n in range(10_000))})
    engine.call("write_lines", {"text": "ERROR: lost atoms"})
    assert engine.log_tail().endswith("ERROR: lost atoms | ERROR: lost atoms")
    assert len(engine.log_tail()) < 3000


def test_an_engine_that_cannot_be_confined_is_no_crash(
    engine: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as no_ruleset:
        descriptors = nullcontext(([], (no_ruleset.fileno(),)))
        monkeypatch.setattr(engine_module, "confined", lambda *_, **__: descriptors)
        with pytest.raises(Permanent, match="toy_child: cannot be confined: "):
            engine.call("echo", {"value": 1})


def test_the_status_of_an_unconfined_engine_is_an_engines_own_later(engine: ChildProcess) -> None:
    engine.call("echo", {"value": 1})
    with pytest.raises(EngineCrashed):
        engine.call("leave", {"status": engine_module.UNCONFINED})


@pytest.mark.parametrize("replaced", ["engine.log", "."])
def test_the_log_is_in_the_childs_folder(tmp_path: Path, replaced: str) -> None:
    private, home = tmp_path / f"{STEM}1", tmp_path / "home"
    engine = ChildProcess("toy_child", private / "scratch", links=True)
    for folder in (private, home):
        folder.mkdir()
    (home / "engine.log").write_text("secret")
    if replaced == "engine.log":
        engine.scratch.mkdir()
    (engine.scratch / replaced).symlink_to(home / replaced)
    assert engine.log_tail() == ""
    try:
        engine.call("write_lines", {"text": "was here"})
    finally:
        engine.kill()
    assert (home / "engine.log").read_text() == "secret"
    assert "was here" in engine.log_tail()


# ------------------------------------------------------------------------------------------- forks


def test_forks_share_nothing_but_the_warm_start(forking: ChildProcess) -> None:
    assert [forking.call("count", {}) for _ in range(3)] == [1, 1, 1]
    pids = {forking.call("pid", {}) for _ in range(3)}
    assert len(pids) == 3
    assert forking.pid not in pids


def test_a_fork_that_something_else_kills_ran_out_of_memory(
    forking: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.child_process.YIELD_SECONDS", 0.1)
    with pytest.raises(EngineKilled, match="out of memory"):
        forking.call("die", {"number": signal.SIGKILL}, tick=lambda: None)


def test_a_forks_crash_leaves_the_warm_child(forking: ChildProcess) -> None:
    forking.start()
    warm = forking.pid
    with pytest.raises(EngineKilled, match=r"out of memory.*last words"):
        forking.call("die", {})
    with pytest.raises(EngineCrashed):
        forking.call("leave", {"status": 0})
    with pytest.raises(EngineError, match="lost atoms"):
        forking.call("refuse", {"text": "lost atoms"})
    assert forking.call("echo", {"value": 1}) == 1
    assert forking.pid == warm


def test_large_replies_pass_through_a_fork(forking: ChildProcess) -> None:
    assert len(forking.call("flood", {"size": 3_000_000})) == 3_000_000


def test_a_fork_ends_with_its_engine(forking: ChildProcess) -> None:
    spawned = forking.call("spawn", {})
    with pytest.raises(EngineCrashed):
        forking.call("sleep", {"seconds": 60}, seconds=0.2)
    eventually(lambda: not is_running(spawned))


# ------------------------------------------------------------------------------------- containment


def test_the_childs_environment_holds_no_secrets(
    engine: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "sesame",
        "DPSTREAM_BROKER": "amqps://user:sesame@broker",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "sesame",
        "PYTHONPATH": "/sesame",
        "LD_PRELOAD": "",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    environment = engine.call("environment", {})
    assert not secrets.keys() & environment.keys()
    assert "sesame" not in str(environment)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HOME"] == str(engine.scratch)


def test_the_child_works_in_its_scratch_folder(engine: ChildProcess) -> None:
    assert Path(engine.call("working_directory", {})).samefile(engine.scratch)


def test_what_lies_in_the_scratch_folder_is_never_imported(engine: ChildProcess) -> None:
    home = engine.scratch / ".local/lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for folder in (engine.scratch, home / "site-packages"):
        folder.mkdir(parents=True)
        for module in ("json", "toy_child", "sitecustomize", "usercustomize"):
            (folder / f"{module}.py").write_text("raise SystemExit('imported')")
    assert engine.call("count", {}) == 1


def test_threads_are_pinned_as_asked(tmp_path: Path) -> None:
    engine = ChildProcess("toy_child", tmp_path / "scratch", threads=3)
    assert engine.call("environment", {})["TF_INTRA_OP_PARALLELISM_THREADS"] == "3"
    engine.kill()


PARENT = """
import sys
from pathlib import Path
from dpstream.shared.runtime.child_process import ChildProcess
child = ChildProcess(sys.argv[1], Path(sys.argv[2]))
child.start()
print(child.pid, flush=True)
child.call("sleep", {"seconds": 600})
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
@pytest.mark.parametrize("module", ["toy_child", "forking_child"])
def test_the_child_dies_with_a_killed_parent(tmp_path: Path, modules: Path, module: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, module, str(tmp_path / "scratch")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(modules), *sys.path])},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    size = 2 if module == "forking_child" else 1
    family: list[int] = []

    def is_complete() -> bool:
        family[:] = [child, *(each.pid for each in psutil.Process(child).children())]
        return len(family) == size

    eventually(is_complete)
    time.sleep(0.5)
    assert is_running(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not any(is_running(pid) for pid in family))


def test_no_child_starts_without_the_gpu_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA hides a lost GPU, and an engine that started would compute on the CPU."""
    nvml = has_gpus(monkeypatch, H200)
    engine = ChildProcess("toy_child", tmp_path / "scratch", device=chosen("auto"))
    assert engine.call("environment", {})["CUDA_VISIBLE_DEVICES"] == H200.uuid
    nvml.gpus = ()
    assert engine.call("echo", {"value": 1}) == 1
    engine.kill()
    with pytest.raises(MachineFault, match=r"NVIDIA H200 is lost: .*Not Found"):
        engine.call("echo", {"value": 1})
    assert nvml.open == 0
