"""Every error dpstream raises on purpose.

    DpstreamError
    ├── SpecError            the user's input is wrong: one line with file, key, value, remedy
    ├── StoreError
    │   ├── NotFound         no object under this key
    │   └── DigestMismatch   an object's bytes are not what its reference says
    ├── BusError
    │   ├── Unroutable       nothing is bound to receive this message
    │   └── QueueFull        the broker stores no more: a queue is full
    ├── Refused              a BusError and StoreError: wrong credentials, or a server that lacks
    │                        a needed feature; a process that starts does not retry it
    ├── Fenced               a newer coordinator has taken over this campaign
    ├── CorruptLedger        a campaign's ledger cannot be read as it was written
    ├── FleetError           what runs the workers cannot be asked, or refuses
    │   └── FleetLimit       a quota or limit of the fleet engine forbids more workers
    └── TaskError            raised by a handler to end its task
        ├── Temporary        worth another attempt; does not count against the task's attempts
        │   └── MachineFault the engine's machine lacks memory, or its GPU or a library of it failed
        ├── Permanent        would fail the same way again: the task is abandoned at once
        ├── EngineError      the engine raised a Python exception in the child process
        ├── EngineCrashed    the engine process died; counts against the task's attempts
        │   └── EngineKilled by SIGKILL, as by the kernel of a machine without memory
        ├── ParserFailed     no verdict on a file: its parser was killed, waited too long or does
        │                    not start; counts against the task's attempts
        ├── Stuck            no progress for too long; counts against the task's attempts
        └── Stopped          cancelled, superseded or worker stopping: no result is needed

Anything else that escapes a handler counts as a crash of the task.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Full or read-only disk, too many open files."""


class DpstreamError(Exception):
    """Base of all errors raised on purpose."""


class SpecError(DpstreamError):
    """The user's input is wrong."""


class StoreError(DpstreamError):
    """The object store could not complete a request."""


class NotFound(StoreError):
    """No object under this key."""


class DigestMismatch(StoreError):
    """An object's bytes are not what its reference says. `found`: the bytes, if they were read."""

    def __init__(self, reason: str, found: bytes | None = None) -> None:
        super().__init__(reason)
        self.found = found


class BusError(DpstreamError):
    """The bus could not complete a request."""


class Unroutable(BusError):
    """Nothing is bound to receive this message."""


class QueueFull(BusError):
    """The broker did not store a message, because a queue is full."""


class Refused(BusError, StoreError):
    """The broker or store refuses the credentials or lacks a needed feature."""


class Fenced(DpstreamError):
    """A newer coordinator has taken over this campaign."""


class CorruptLedger(DpstreamError):
    """A segment of a campaign's ledger or archive is missing or differs from what was written."""


class FleetError(DpstreamError):
    """The fleet engine could not complete a request."""


class FleetLimit(FleetError):
    """A quota or a limit of the fleet engine forbids more workers."""


class TaskError(DpstreamError):
    """Raised by a handler to end its task."""


class Temporary(TaskError):
    """Worth another attempt after `delay` seconds; does not count against the task's attempts."""

    def __init__(self, reason: str, delay: float = 5.0) -> None:
        super().__init__(reason)
        self.delay = delay


class MachineFault(Temporary):
    """The machine of the engine is at fault; it may recover meanwhile, or another one has room."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, delay=30.0)


class Permanent(TaskError):
    """Would fail the same way again."""


class EngineError(TaskError):
    """The engine raised an exception; `kind` is its class name in the child process."""

    def __init__(self, message: str, kind: str = "", trace: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.trace = trace


class EngineCrashed(TaskError):
    """The engine process died; `status` as far as it is known: negative for a signal."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class EngineKilled(EngineCrashed):
    """SIGKILL ended the engine: usually its machine, or its share of the machine, lacks memory."""


class ParserFailed(TaskError):
    """A parser was killed, waited too long or does not start. The machine may be the cause: this is
    no verdict on the file. Counts against the task's attempts, and a labeler does not take it for
    a crash of its engine, after which it would compute the frame again."""


class Stuck(TaskError):
    """The task made no progress for too long; counts against its attempts."""


class Stopped(TaskError):
    """No result is needed any more."""


@contextmanager
def errors_at(where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns errors of these kinds into a `SpecError` that begins with `where`."""
    try:
        yield
    except kinds as error:
        raise SpecError(f"{where}: {error}") from error


@contextmanager
def write_errors(where: object) -> Iterator[None]:
    """Turns errors of the file system into a `SpecError` about `where`."""
    try:
        yield
    except OSError as error:
        raise SpecError(f"{where}: cannot be written: {error.strerror}") from error


def is_machines_fault(error: BaseException) -> TypeGuard[OSError]:
    """Whether this machine lacks disk space or file handles, independent of the task."""
    return isinstance(error, OSError) and error.errno in EXHAUSTED
