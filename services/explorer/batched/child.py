"""The child process of the engine `batched`: replicas that PyTorch and TorchSim move together.

Run by `dpstream.shared.runtime.child_process`; states and frames are passed as `.npz` files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# cuBLAS reads it when CUDA starts; without it, the same sum may have other last digits.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from dpstream.services.explorer.batched.group import Replica, Request, grouped
from dpstream.services.explorer.batched.replica import ReplicaState, Terms

REPLICAS: dict[str, Replica] = {}
SEGMENT_SECONDS = 0.5
"""After so much time replicas that wait may join."""


def put(name: str, terms: Mapping[str, Any], state: str) -> None:
    """Add a replica with the state in a file; it moves when it is asked to."""
    _set(name, Replica(Terms.of(terms), ReplicaState.loads(Path(state).read_bytes())))


def change(name: str, terms: Mapping[str, Any]) -> None:
    """Continue a replica on other terms, such as another committee."""
    _set(name, Replica(Terms.of(terms), _replica(name).state))


def save(name: str, state: str) -> None:
    """Write the state of a replica to a file."""
    Path(state).write_bytes(_replica(name).state.dumps())


def end(name: str) -> None:
    """Remove a replica."""
    REPLICAS.pop(name, None)


def advance(asked: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add requests by the name of the replica and work on all, for half a second or until one is
    over. Returns the results of those that are over."""
    for name, request in asked.items():
        _replica(name).request = Request(**request)
    groups = grouped(REPLICAS)
    deadline = time.monotonic() + SEGMENT_SECONDS
    while True:
        for group in groups:
            group.check()
        if time.monotonic() > deadline or _over():
            break
    for group in groups:
        group.write_back()
    results = {name: request.result() for name, request in _over().items()}
    for name in results:
        REPLICAS[name].request = None
    return results


def _over() -> dict[str, Request]:
    requests = ((name, each.request) for name, each in REPLICAS.items())
    return {name: request for name, request in requests if request is not None and request.over}


def _set(name: str, replica: Replica) -> None:
    """Raises ValueError for models that cannot move it: in a batch it would end the others."""
    replica.check_elements()
    REPLICAS[name] = replica


def _replica(name: str) -> Replica:
    """Raises RuntimeError if there is none, as after a crash of another trajectory."""
    if name not in REPLICAS:
        raise RuntimeError("the batch crashed, and this trajectory with it")
    return REPLICAS[name]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "put": put,
    "change": change,
    "save": save,
    "end": end,
    "advance": advance,
}
