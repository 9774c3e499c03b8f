"""A child process that reaches for what is none of its business."""

from __future__ import annotations

import os
import resource
import signal
import socket
from pathlib import Path


def write(path: str) -> None:
    Path(path).write_text("was here")


def read(path: str) -> str:
    return Path(path).read_bytes().decode(errors="replace")


def folder() -> str:
    return str(Path.cwd())


def link(path: str, to: str) -> None:
    """A second name, in a folder of the child, of a file elsewhere."""
    os.link(path, to)


def symlink(path: str, to: str) -> None:
    Path(to).symlink_to(path)


def connect(port: int, protocol: int = socket.IPPROTO_TCP) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as it:
        it.settimeout(5.0)
        it.connect(("127.0.0.1", port))


def send(port: int) -> None:
    """Connect with the first data that is sent."""
    with socket.socket() as it:
        it.sendto(b"hello", socket.MSG_FASTOPEN, ("127.0.0.1", port))


def connect_abstract(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as it:
        it.connect(f"\0{name}")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def limit(pid: int) -> None:
    """A process with one second of processor time ends soon."""
    resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))


OPERATIONS = {
    each.__name__: each
    for each in (write, read, folder, link, symlink, connect, send, connect_abstract, kill, limit)
}
