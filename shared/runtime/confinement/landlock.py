"""Landlock of the Linux kernel: a process gives up access for itself and all that it starts.

`paths` and `ports` make rulesets, which one process builds and another one, started with their
descriptors, imposes on itself with `restrict`. What a ruleset does not allow is refused. The module
imports little: it is loaded at each start of a program.

Reference: Documentation/userspace-api/landlock.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dpstream.shared.runtime.confinement import loopholes

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, the same on all architectures but Alpha."""
GET_VERSION, BENEATH, PORT = 1, 1, 2
CONNECT = 1 << 1
SIGNALS_AND_ABSTRACT_SOCKETS = 0b11
SET_NO_NEW_PRIVILEGES = 38
CAPABILITY_VERSION = 0x20080522

EXECUTE, WRITE, READ, LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_DEVICES = (1 << 6) | (1 << 11)
TRUNCATE, IOCTL = 1 << 14, 1 << 15
RIGHTS = {2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights on files by the first ABI that knows them."""

READS = EXECUTE | READ | LIST
WRITES = ((1 << 16) - 1) & ~MAKE_DEVICES
FILES_ONLY = WRITES & ~((1 << 10) | (1 << 12))
"""No named pipes and no symbolic links, which a worker could open in place of files."""
DEVICE = READ | WRITE | LIST | IOCTL
ON_FILES = EXECUTE | WRITE | READ | TRUNCATE | IOCTL
"""The rights that a rule for a single file may have."""

LEAST_ABI, NETWORK_ABI, SCOPE_ABI = 2, 4, 6
"""Before the first no file can be moved between folders; connections and signals came later."""

_LIBC = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Version of the kernel's Landlock; 0 without it."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_LIBC.syscall(CREATE_RULESET, None, 0, GET_VERSION)))


def paths(rules: Iterable[tuple[Path, int]]) -> int:
    """Descriptor of a new ruleset: files below each path with these rights; signals and abstract
    sockets among the confined processes alone, where the kernel can. Paths that do not exist are
    left out."""
    version = abi()
    rights = RIGHTS[max(known for known in RIGHTS if known <= version)]
    ruleset = _ruleset(rights, 0, SIGNALS_AND_ABSTRACT_SOCKETS if version >= SCOPE_ABI else 0)
    for path, allowed in rules:
        with suppress(OSError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                is_folder = stat.S_ISDIR(os.fstat(place).st_mode)
                allowed &= rights if is_folder else rights & ON_FILES
                _call(ADD_RULE, ruleset, BENEATH, struct.pack("=Qi", allowed, place), 0)
            finally:
                os.close(place)
    return ruleset


def ports(allowed: Iterable[int]) -> int:
    """Descriptor of a new ruleset: TCP connections to these ports alone."""
    ruleset = _ruleset(0, CONNECT, 0)
    for port in allowed:
        _call(ADD_RULE, ruleset, PORT, struct.pack("=QQ", CONNECT, port), 0)
    return ruleset


def restrict(rulesets: Iterable[int]) -> None:
    """Impose the rulesets on the calling thread and all that it starts, for good, and close them,
    and the ways around them. Root's privileges are dropped: with them a process may read another
    one's environment. Raises OSError."""
    if _LIBC.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise _error()
    header, none = struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24)
    if _LIBC.capset(header, none) != 0:
        raise _error()
    for ruleset in rulesets:
        _call(RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)
    loopholes.close()


def _ruleset(files: int, network: int, scopes: int) -> int:
    attributes = struct.pack("=QQQ", files, network, scopes)  # zeros are fields unknown to old ABIs
    return _call(CREATE_RULESET, attributes, len(attributes), 0)


def _call(*arguments: object) -> int:
    result: int = _LIBC.syscall(*arguments)
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
