"""A child of `BatchRunner` without physics: each check of a replica takes a moment.

`REPLICAS` maps names to the checks that are left; the names `dies`, `hangs` and `fails` do that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

REPLICAS: dict[str, int] = {}


def put(name: str) -> int:
    REPLICAS[name] = 0
    return len(REPLICAS)


def end(name: str) -> None:
    REPLICAS.pop(name, None)


def advance(asked: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Returns, of replicas that are done, how many moved with them in the last check."""
    for name, request in asked.items():
        if name not in REPLICAS:
            raise RuntimeError("no such replica")
        REPLICAS[name] = request["checks"]
        if name == "dies":
            os._exit(9)
        if name == "hangs":
            time.sleep(600)
        if name == "fails":
            raise ValueError("no such model")
    time.sleep(0.02)
    moving = [name for name, left in REPLICAS.items() if left > 0]
    for name in moving:
        REPLICAS[name] -= 1
    return {name: len(moving) for name in moving if REPLICAS[name] == 0}


OPERATIONS = {"put": put, "end": end, "advance": advance}
