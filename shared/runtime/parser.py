"""Parses bytes from outside in an expendable child process.

Every call runs in a fork of the warm child, limited in processor time, memory and the size of its
result, so that a file can neither hang a worker nor take its memory. That the fork exceeds these
limits, crashes or raises is a property of the file: `Unreadable`, with a reason. SIGKILL and too
much wall time may be the machine's fault: after a second try, `ParserFailed`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpstream.shared.atoms.records import Record, pack, unpack
from dpstream.shared.errors import (
    DpstreamError,
    EngineCrashed,
    EngineError,
    EngineKilled,
    ParserFailed,
)
from dpstream.shared.files import read_plain
from dpstream.shared.runtime.child_process import ChildProcess, Limits

MIB = 2**20
TRIES = 2
WAITING_SECONDS, WAITING_FACTOR = 60.0, 4.0
"""Wall time of a call beyond its processor time, on a machine with other work to do: a read from a
pipe without a writer takes no processor time."""

START_SECONDS = 300.0
"""Wall time in which a new child has imported its libraries."""

LEAST_SECONDS = 5.0
"""Processor time that the smallest file may take."""


class Unreadable(DpstreamError):
    """The bytes cannot be parsed, or only with more than the limits allow. `kind`: class of the
    parser's exception, empty without one."""

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(f"{kind}: {reason}" if kind else reason)
        self.reason, self.kind = reason, kind


def limits_of(frames: int, atoms: int) -> Limits:
    """Limits for a file of `frames` with `atoms` in total. Ten times what ASE needs for extended
    xyz: some 20 µs and 400 bytes per atom."""
    return Limits(
        seconds=LEAST_SECONDS + 0.02 * frames + 2e-4 * atoms,
        memory=256 * MIB + 4096 * atoms,
        file=MIB + 512 * atoms,
    )


class Parser:
    """A warm child process that parses with the operations of one module, which sets `FORK`. It
    starts with the first call."""

    def __init__(self, module: str, scratch: Path, reads: Collection[Path] = ()) -> None:
        """`scratch`: a private folder; `reads`: folders that it may read besides."""
        self.child = ChildProcess(module, scratch, reads=reads)

    def close(self) -> None:
        self.child.kill()

    def call(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        limits: Limits,
        tick: Callable[[], None] | None = None,
    ) -> Any:
        """The JSON result of an operation, which is not trusted. Raises Unreadable, and
        ParserFailed if the file may not be the cause; exceptions of `tick` end the child and
        propagate."""
        seconds = WAITING_SECONDS + WAITING_FACTOR * limits.seconds
        reason = ""
        for _ in range(TRIES):
            deadline = time.monotonic() + seconds
            try:
                return self.child.call(
                    operation, arguments, tick=tick, seconds=seconds, limits=limits
                )
            except EngineError as error:
                raise _refusal(error, limits) from error
            except EngineCrashed as error:
                is_late = error.status is None and time.monotonic() >= deadline
                if not is_late and not isinstance(error, EngineKilled):
                    self._check_child(tick)
                    raise Unreadable(_cause(error, limits)) from error
                reason = str(error)
            self.child.kill()  # a further try has a new one
        raise ParserFailed(reason)

    def _check_child(self, tick: Callable[[], None] | None) -> None:
        """Raise ParserFailed if the child dies even without a file: then the worker, not the file,
        is the cause."""
        try:
            with suppress(EngineError):  # that there is no such operation
                self.child.call("none", {}, tick=tick, seconds=START_SECONDS)
        except EngineCrashed as error:
            raise ParserFailed(str(error)) from error

    def read(
        self,
        operation: str,
        data: bytes,
        arguments: Mapping[str, Any],
        limits: Limits,
        tick: Callable[[], None] | None = None,
    ) -> list[Record]:
        """As `records`, from a further argument `source`: a file with `data`."""
        source = self.child.scratch / "source"
        source.parent.mkdir(parents=True, exist_ok=True)
        _write_new(source, data)
        try:
            return self.records(operation, {**arguments, "source": str(source)}, limits, tick)
        finally:
            source.unlink(missing_ok=True)

    def records(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        limits: Limits,
        tick: Callable[[], None] | None = None,
    ) -> list[Record]:
        """The records that an operation writes with `write_records` to the file that is its further
        argument `result`. Raises as `call`."""
        result = self.child.scratch / "result"
        try:
            self.call(operation, {**arguments, "result": str(result)}, limits, tick)
            return unpack(_content(result, limits.file))
        except ValueError as error:
            raise Unreadable(f"the parser returned garbage: {error}") from error
        finally:
            result.unlink(missing_ok=True)


def write_records(result: str, records: list[Record]) -> None:
    """In the child: write the records of a call to `read`."""
    Path(result).write_bytes(pack(records))


def _write_new(path: Path, data: bytes) -> None:
    """Write a file that is no link to another one."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)


def _content(path: Path, most: int) -> bytes:
    """Raises ValueError unless `path` is a file of at most `most` bytes."""
    content = None
    with suppress(OSError):
        content = read_plain(path, most)
    if content is not None:
        return content
    raise ValueError("no result")


def _refusal(error: EngineError, limits: Limits) -> Unreadable:
    if error.kind.endswith("MemoryError"):  # numpy has one of its own
        return Unreadable(f"needs more than {limits.memory // MIB} MiB of memory")
    return Unreadable(str(error), error.kind)


def _cause(error: EngineCrashed, limits: Limits) -> str:
    if error.status == -signal.SIGXCPU:
        return f"takes more than {limits.seconds:g} s of processor time"
    if error.status is not None and error.status < 0:
        return f"crashes its parser ({signal.Signals(-error.status).name})"
    return f"cannot be parsed: {error}"
