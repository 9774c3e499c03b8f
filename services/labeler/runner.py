"""Runs a labeling program for one single point.

Every run has a new folder, an environment without secrets and a time limit. The program's exit
status and output files become an `Outcome`; whether that is a valid label is decided elsewhere
(`acceptance`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.base import FileCode, Restartable, Retrying
from dpstream.services.labeler.codes.user_program import is_stated
from dpstream.services.labeler.programs import environment, threads_of
from dpstream.shared.activity import Activity
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import EngineCrashed, EngineKilled, Permanent, SpecError, Stopped
from dpstream.shared.runtime.child_process import KILLED, await_stop, out_of_memory
from dpstream.shared.runtime.confinement.children import confined
from dpstream.shared.runtime.confinement.supervisor import end, supervised
from dpstream.shared.values import Recipe

POLL = 0.05
"""Seconds between checks of a running program."""
TAIL, LINES, MAX_WORDS = 4096, 2, 200
"""Bytes of a program's output of which the last lines are shown, their number, and their
characters."""
EMPTY = re.compile("floating-point exceptions are signalling")
"""Fortran programs end with this line whether they failed or not."""

Read = Callable[[FileCode, Path, Frame, int], Outcome]
"""`read(code, folder, frame, exit_status)`: the outcome of a run in `folder`."""


def run_files(
    code: FileCode,
    recipe: Recipe,
    frame: Frame,
    folder: Path,
    *,
    files: Mapping[str, bytes],
    cores: int,
    seconds: float,
    tick: Callable[[], None],
    read: Read,
    progressed: Callable[[], None] = lambda: None,
    restart: Mapping[str, bytes] | None = None,
    patience: Callable[[], float] = lambda: 0.0,
) -> Outcome:
    """One single point by a program in `folder`, which must not exist yet; `files` (by name) are
    written there first. `progressed` is called while the program is at work, see `Activity`.

    A `Restartable` code starts from the `restart` files of an earlier run. When `tick` raises
    `Stopped`, it has `patience()` seconds to end by itself and to write such files.

    A code with alternative convergence settings (`Retrying`) runs again in a folder beside it until
    it converges. Raises EngineCrashed after `seconds` or if a signal ended the program,
    EngineKilled if it was SIGKILL, and Permanent if the program is not installed, cannot start or
    has another version. Exceptions of `tick` end the program and propagate.
    """
    started = time.monotonic()
    tries = code.tries(recipe) if isinstance(code, Retrying) else iter((recipe,))
    for number, each in enumerate(tries):
        attempt_folder = folder.with_name(f"{folder.name}-try-{number}") if number else folder
        left = seconds - (time.monotonic() - started)
        _prepare(code, each, frame, attempt_folder, files, restart or {})
        outcome = _run_once(
            code, each, frame, attempt_folder, cores, left, tick, progressed, patience, read
        )
        if not outcome.unconverged:
            break
    return replace(outcome, seconds=time.monotonic() - started)


def _prepare(
    code: FileCode,
    recipe: Recipe,
    frame: Frame,
    folder: Path,
    files: Mapping[str, bytes],
    restart: Mapping[str, bytes],
) -> None:
    """Write all that the program reads to a new folder."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    code.write_inputs(frame, recipe, folder)
    if restart and isinstance(code, Restartable):
        for name, data in restart.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        code.use_restart(folder)


def _run_once(
    code: FileCode,
    recipe: Recipe,
    frame: Frame,
    folder: Path,
    cores: int,
    seconds: float,
    tick: Callable[[], None],
    progressed: Callable[[], None],
    patience: Callable[[], float],
    read: Read,
) -> Outcome:
    def stop() -> float:
        left = patience()
        waits = left > 0 and isinstance(code, Restartable) and code.request_stop(folder)
        return left if waits else 0.0

    command = _command(code, recipe, cores)
    status = run(
        command, folder, cores=cores, seconds=seconds, tick=tick, progressed=progressed, stop=stop
    )
    _check_status(command[0], status, tick)
    outcome = read(code, folder, frame, status)
    _check_version(recipe, outcome)
    silent = not outcome.messages and (status != 0 or not outcome.end_marker)
    return replace(outcome, messages=last_lines(folder)) if silent else outcome


def last_lines(folder: Path) -> tuple[str, ...]:
    """The last lines that a program wrote to its standard output and error, for a rejection of
    which its reader names no reason."""
    lines = [*_last_lines(folder / "stdout"), *_last_lines(folder / "stderr")]
    return (" / ".join(lines)[-MAX_WORDS:],) if lines else ()


def _last_lines(path: Path) -> list[str]:
    if not path.is_file():  # the program may have removed it
        return []
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        text = file.read().decode(errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in lines if re.search(r"\w", line) and not EMPTY.search(line)][-LINES:]


def _check_status(program: str, status: int, tick: Callable[[], None]) -> None:
    """Raises EngineKilled or EngineCrashed if a signal ended the program."""
    if status != 0:
        await_stop(tick)
    if status in KILLED:
        raise EngineKilled(out_of_memory(program))
    if status < 0:
        raise EngineCrashed(f"the program was ended by {signal.Signals(-status).name}")


def _command(code: FileCode, recipe: Recipe, cores: int) -> list[str]:
    try:
        return code.command(recipe, cores)
    except SpecError as error:
        raise Permanent(str(error)) from error


def _check_version(recipe: Recipe, outcome: Outcome) -> None:
    assert recipe.version is not None  # no labeler makes a recipe without one
    if not is_stated(recipe.version, outcome.program):
        raise Permanent(
            f"this worker's {recipe.code} is {outcome.program}, the campaign's is {recipe.version}"
        )


def run(
    command: Sequence[str],
    folder: Path,
    *,
    cores: int,
    seconds: float,
    tick: Callable[[], None],
    progressed: Callable[[], None] = lambda: None,
    stop: Callable[[], float] = lambda: 0.0,
) -> int:
    """Run `command` in `folder`; its exit status, or the negative number of the signal that ended
    it. `stop` is called when `tick` raises `Stopped`, and returns how many seconds the program has
    to end by itself. Raises as `run_files`."""
    reading, writing = os.pipe()
    with open(reading, "rb") as faults:
        with open(writing, "wb"):
            process = _start(command, folder, cores, writing)
        try:
            check = Activity(lambda: process.pid, folder).watched(tick, progressed)
            status = _wait(process, time.monotonic() + seconds, check)
            _check_start(command[0], faults.read())
            return status
        except Stopped:
            with suppress(OSError, subprocess.TimeoutExpired):
                process.wait(stop())
            raise
        finally:
            end(process)
            remove_links(folder)


def _start(
    command: Sequence[str], folder: Path, cores: int, faults: int
) -> subprocess.Popen[bytes]:
    """Start the program, confined to `folder` and with a supervisor, so that nothing of it is
    left when it or this worker ends. `faults`: see `supervised`."""
    if shutil.which(command[0]) is None:
        raise Permanent(
            f"{command[0]}: no such program on this worker; set DPSTREAM_LABELER_COMMANDS"
        )
    with (
        (folder / "stdout").open("wb") as out,
        (folder / "stderr").open("wb") as err,
        confined(folder, command) as (prefix, rulesets),
    ):
        return subprocess.Popen(
            supervised([*prefix, *command], rulesets, faults),
            cwd=folder,
            env=environment(folder, threads_of(command, cores)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            pass_fds=(*rulesets, faults),
        )


def _check_start(program: str, fault: bytes) -> None:
    """Raise Permanent for a program that could not start: a fault of the set-up, not of the
    frame."""
    if fault:
        raise Permanent(
            f"{program}: {fault.decode()}; DPSTREAM_CONFINE_READ names further folders that "
            "programs and their interpreters are in"
        )


def _wait(process: subprocess.Popen[bytes], deadline: float, tick: Callable[[], None]) -> int:
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            tick()
        if time.monotonic() > deadline:
            raise EngineCrashed("the program took longer than its time limit")


def remove_links(folder: Path) -> None:
    """Remove what leads out of the folder of an ended program, and named pipes and sockets: this
    worker, which may read more than the program, would read them as its outputs."""
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            leads_out = path.is_symlink() and inside not in path.resolve().parents
            if leads_out or not (path.is_file() or path.is_dir()):
                path.unlink()
