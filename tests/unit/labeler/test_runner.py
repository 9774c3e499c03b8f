"""Labeling programs as processes."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dpstream.services.labeler import runner
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.runner import run_files
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import EngineCrashed, EngineKilled, Permanent, Stopped
from dpstream.shared.runtime.confinement import landlock
from dpstream.shared.values import Recipe
from tests.support.programs.labeling_programs import read_here
from tests.support.workers.orphans import outlived
from tests.support.workers.worker import stop_after

pytestmark = pytest.mark.slow

LABELER = """
from pathlib import Path
from dpstream.services.labeler.runner import run
run(["sh", "-c", {script!r}], Path.cwd(), cores=1, seconds=300, tick=lambda: None)
"""
WRAPPERS = {
    "program": "exec sleep 300",
    "wrapper": "sleep 300; true",
    "background": "sleep 300 & sleep 301; true",
    "session": "setsid sleep 300",
    "daemon": "(setsid sh -c 'sleep 300; true' > /dev/null 2>&1 &); sleep 301; true",
}
"""Scripts as sites have them around a program; of the last two, some left the session."""


needs_landlock = pytest.mark.skipif(landlock.abi() == 0, reason="needs Landlock")


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_CONFINE", "off")


@pytest.mark.slow
@pytest.mark.parametrize("script", WRAPPERS.values(), ids=WRAPPERS)
def test_no_program_outlives_its_labeler(tmp_path: Path, script: str) -> None:
    sleeping = script.count("sleep")

    def busy(started: set[int]) -> bool:
        return [name_of(pid) for pid in started].count("sleep") == sleeping

    assert outlived(LABELER.format(script=script), tmp_path, busy, seconds=1.0) == set()


def name_of(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.parametrize("script", ["true", "exit 3", "kill -TERM $$", "sleep 60"])
def test_nothing_that_a_program_started_outlives_it(tmp_path: Path, script: str) -> None:
    """Neither when it ends by itself nor when it is ended."""
    left = tmp_path / "left"

    def stop() -> None:
        if script == "sleep 60" and left.exists():
            raise Stopped

    with suppress(Stopped, EngineCrashed):
        outcome_of(f"setsid sleep 300 & echo $! > {left}; {script}", tmp_path, stop)
    assert not psutil.pid_exists(int(left.read_text()))


def test_links_out_of_its_folder_are_no_outputs(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("private")
    links = "ln -s ../secret a; mkdir d; ln -s ../../secret d/b; ln -s ../.. c; mkfifo e"
    outcome_of(f"{links}; echo label > good; ln -s good f; ln -s nowhere g", tmp_path)
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*")}
    assert names - {"stdout", "stderr"} == {"d", "good", "f"}


@needs_landlock
def test_a_program_whose_interpreter_is_hidden_is_no_fault_of_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DPSTREAM_CONFINE_WRITE")
    interpreter, program = tmp_path / "sh", tmp_path / "programs" / "toy"
    shutil.copy("/bin/sh", interpreter)
    program.parent.mkdir()
    program.write_text(f"#!{interpreter}\n")
    program.chmod(0o755)
    with pytest.raises(Permanent, match=r"toy: cannot be executed: Permission denied; DPSTREAM_CO"):
        run_in(tmp_path / "run", program)
    monkeypatch.setenv("DPSTREAM_CONFINE_READ", str(interpreter))
    assert run_in(tmp_path / "again", program) == 0


def test_a_program_that_cannot_be_confined_is_no_fault_of_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as no_ruleset:
        descriptors = nullcontext(([], (no_ruleset.fileno(),)))
        monkeypatch.setattr(runner, "confined", lambda *_: descriptors)
        with pytest.raises(Permanent, match=r"/true: cannot be confined: "):
            run_in(tmp_path / "run", Path("/bin/true"))


@pytest.mark.parametrize("status", [127, 126])
def test_a_status_as_of_a_shell_without_the_program_is_the_programs(
    tmp_path: Path, status: int
) -> None:
    assert outcome_of(f"exit {status}", tmp_path).exit_status == status


def run_in(folder: Path, program: Path) -> int:
    folder.mkdir()
    return runner.run([str(program)], folder, cores=1, seconds=60, tick=lambda: None)


@pytest.mark.usefixtures("unconfined")
def test_a_signal_to_all_processes_of_a_job_does_not_end_the_supervisor(tmp_path: Path) -> None:
    """Slurm sends SIGTERM to all; a program that handles it goes on."""
    script = "trap '' TERM; kill -TERM $PPID; sleep 0.2; exit 5"
    assert outcome_of(script, tmp_path).exit_status == 5


class Ending:
    """A program that ends as `script` does."""

    def __init__(self, script: str) -> None:
        self.script = script

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        """None."""

    def command(self, recipe: Recipe, cores: int) -> list[str]:
        return ["sh", "-c", self.script]

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        return Outcome(exit_status=exit_status)


class Continuing(Ending):
    """A program that can end early and continue."""

    restart_name = re.compile("state")

    def complete(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        return dict(files)

    def request_stop(self, folder: Path) -> bool:
        (folder / "stop").touch()
        return True

    def use_restart(self, folder: Path) -> None:
        (folder / "state").rename(folder / "begin")


def outcome_of(
    script: str,
    folder: Path,
    tick: object = lambda: None,
    program: type[Ending] = Ending,
    **restart: Any,
) -> Outcome:
    frame = Frame(("H",), np.zeros((1, 3)))
    recipe = Recipe(code="custom", version="1", settings={}, charge=0, multiplicity=1)
    return run_files(
        program(script),  # type: ignore[arg-type]
        recipe,
        frame,
        folder / "run",
        files={},
        cores=1,
        seconds=60,
        tick=tick,  # type: ignore[arg-type]
        read=read_here,
        **restart,
    )


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.child_process.YIELD_SECONDS", 0.1)


@pytest.mark.usefixtures("prompt")
@pytest.mark.parametrize("script", ["kill -KILL $$", "exit 137"])
def test_a_killed_program_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setenv("DPSTREAM_POOL", "campus")
    with pytest.raises(EngineKilled, match=r"sh was killed, .* out of memory on campus"):
        outcome_of(script, tmp_path)


@pytest.mark.usefixtures("prompt")
def test_another_signal_is_a_crash(tmp_path: Path) -> None:
    with pytest.raises(EngineCrashed, match="SIGSEGV") as caught:
        outcome_of("kill -SEGV $$", tmp_path)
    assert not isinstance(caught.value, EngineKilled)


@pytest.mark.parametrize("script", ["exit 143", "kill -TERM $$", "exit 1"])
def test_a_program_that_ends_just_before_its_worker_is_stopped_is_not_judged(
    tmp_path: Path, script: str
) -> None:
    """Slurm signals every process of a job, and srun ends with status 143 before the worker."""
    with pytest.raises(Stopped):
        outcome_of(script, tmp_path, stop_after(0.7))


@pytest.mark.usefixtures("prompt")
def test_without_a_stop_a_failed_program_is_judged(tmp_path: Path) -> None:
    assert outcome_of("exit 143", tmp_path).exit_status == 143


@pytest.mark.usefixtures("prompt")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo one; echo two >&2; exit 1", ("one / two",)),
        ("seq 9; echo ---; exit 1", ("8 / 9",)),
        ("echo The following floating-point exceptions are signalling: X >&2; exit 1", ()),
        ("echo a  b; rm stderr; exit 1", ("a b",)),
        ("exit 1", ()),
        ("echo done", ()),
        ("yes 2>/dev/null | head -n 9999; exit 1", ("y / y",)),
    ],
)
def test_a_rejection_has_the_programs_last_lines(
    tmp_path: Path, script: str, words: tuple[str, ...]
) -> None:
    assert outcome_of(script, tmp_path).messages == words


# ------------------------------------------------------------------- programs that can continue

UNTIL_STOPPED = "until [ -e stop ]; do sleep 0.02; done; echo half > state"


def test_a_stopped_program_may_write_its_restart_files(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        outcome_of(UNTIL_STOPPED, tmp_path, stop_after(0.1), Continuing, patience=lambda: 20.0)
    assert (tmp_path / "run" / "state").read_text() == "half\n"


@pytest.mark.parametrize(
    ("script", "patience"), [(UNTIL_STOPPED, 0.0), ("touch started; sleep 60", 0.5)]
)
def test_it_is_killed_when_it_has_no_more_time(
    tmp_path: Path, script: str, patience: float
) -> None:
    started = time.monotonic()
    with pytest.raises(Stopped):
        outcome_of(script, tmp_path, stop_after(0.1), Continuing, patience=lambda: patience)
    assert time.monotonic() - started < 20
    assert not (tmp_path / "run" / "state").exists()
    assert (tmp_path / "run" / "stop").exists() == (patience > 0)


def test_it_starts_from_the_files_of_an_earlier_run(tmp_path: Path) -> None:
    script = '[ "$(cat begin)" = half ]'
    outcome = outcome_of(script, tmp_path, program=Continuing, restart={"state": b"half"})
    assert outcome.exit_status == 0
