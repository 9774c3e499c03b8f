"""Finds free ports for servers that keep their port between starts."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_240


def free_ports(count: int) -> list[int]:
    """Distinct free loopback ports below the ephemeral range, so that no outgoing connection takes
    them while their server is down."""
    candidates = list(range(_LOWEST, int(_EPHEMERAL.read_text().split()[0])))
    random.SystemRandom().shuffle(candidates)
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            listener = held.enter_context(socket.socket())
            port = candidates.pop()
            if _bind(listener, port):
                ports.append(port)
    return ports


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        return _bind(listener, port)


def _bind(listener: socket.socket, port: int) -> bool:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
