"""Closes ways past Landlock, which checks `connect` of TCP sockets alone, and signals.

A seccomp filter refuses sockets of protocols that fall back to TCP (MPTCP, SMC), connecting with
the first data sent (TCP Fast Open), and `io_uring`, whose requests no filter sees; also limits on
the resources of other processes, which end them as a signal does. System calls of another
architecture (32-bit programs) are refused, because they have other numbers.

Reference: Documentation/userspace-api/seccomp_filter.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Iterator
from typing import NamedTuple

SET_SECCOMP, FILTER = 22, 2
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Operations of the filter's machine."""
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
NUMBER, ARCHITECTURE = 0, 4
"""Offsets in the description of a call."""
SMC_FAMILY, SMC, MPTCP = 43, 256, 262
FAST_OPEN = 0x20000000
OTHER_NUMBERS = 0x40000000
"""First number of x32, which shares its architecture with x86-64."""


class Calls(NamedTuple):
    """Numbers of system calls on one architecture."""

    architecture: int
    socket: int
    sendto: int
    sendmsg: int
    sendmmsg: int
    prlimit: int
    io_uring_setup: int = 425


CALLS = {
    "x86_64": Calls(0xC000003E, 41, 44, 46, 307, 302),
    "aarch64": Calls(0xC00000B7, 198, 206, 211, 269, 261),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def close() -> None:
    """Impose the filter on this thread and all that it starts; it must have given up gaining
    privileges. Raises OSError. Does nothing on an architecture without known numbers."""
    calls = CALLS.get(platform.machine())
    if calls is None:
        return
    code = b"".join(_filter(calls))
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp filter refused")


def _filter(calls: Calls) -> Iterator[bytes]:
    yield _step(LOAD, ARCHITECTURE)
    yield _step(EQUAL, calls.architecture, 1, 0)
    yield _step(RETURN, REFUSE)
    for operation, number in ((AT_LEAST, OTHER_NUMBERS), (EQUAL, calls.io_uring_setup)):
        yield _step(LOAD, NUMBER)
        yield _step(operation, number, 0, 1)
        yield _step(RETURN, REFUSE)
    for number, argument, operation, value in (
        (calls.socket, 0, EQUAL, SMC_FAMILY),
        (calls.socket, 2, EQUAL, SMC),
        (calls.socket, 2, EQUAL, MPTCP),
        (calls.sendto, 3, ANY_BIT, FAST_OPEN),
        (calls.sendmsg, 2, ANY_BIT, FAST_OPEN),
        (calls.sendmmsg, 3, ANY_BIT, FAST_OPEN),
    ):
        yield _step(LOAD, NUMBER)
        yield _step(EQUAL, number, 0, 3)
        yield _step(LOAD, 16 + 8 * argument)  # its lower half
        yield _step(operation, value, 0, 1)
        yield _step(RETURN, REFUSE)
    yield _step(LOAD, NUMBER)
    yield _step(EQUAL, calls.prlimit, 0, 3)
    yield _step(LOAD, 16)
    yield _step(EQUAL, 0, 1, 0)  # this process
    yield _step(RETURN, REFUSE)
    yield _step(RETURN, ALLOW)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; jumps count the instructions that are passed over."""
    return struct.pack("=HBBI", operation, if_true, if_false, value)
