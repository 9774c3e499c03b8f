"""The fleet engines with what they need, a worker that stays, and waiting for what a fleet engine
says of its launch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.coordinator.fleet.engines import ENGINES
from dpstream.services.coordinator.fleet.plan import name_of
from dpstream.shared.ports import Fleet, Launch
from tests.support.servers.batch_server import QUEUE
from tests.support.servers.stand_in_scheduler import COMMANDS, installed

PROMPT = 120.0
"""Seconds, the limit of every wait. After an absence of its master, Grid Engine needs over 30."""
MADE = 1_700_000_000.0
NAME = name_of("cpu", MADE)
STAYING = ("bash", "-c", "trap 'exit 75' TERM; touch up.$$ 2>/dev/null; sleep 300 & wait")
"""A worker that gives its task back when it is to stop; its file says that it is up."""

USUAL = {"process", "slurm", "kubernetes", "aws_batch"}
"""Engines that `make test` tries; `make fleet-test` tries all."""
SERVERS = {"slurm": "slurm_server", "sge": "grid_engine", "aws_batch": "aws_batch"}
"""The fixture with the server of an engine."""


def engines(*without: str) -> list[Any]:
    """The names of all fleet engines, as parameters of a test."""
    return [
        pytest.param(name, marks=() if name in USUAL else pytest.mark.soak)
        for name in sorted(ENGINES.keys() - {*without})
    ]


def environment_of(engine: str, request: pytest.FixtureRequest, folder: Path) -> Mapping[str, str]:
    """The variables with which the commands of a batch system find its server, or the stand-in."""
    if engine in SERVERS:
        found: Mapping[str, str] = request.getfixturevalue(SERVERS[engine]).environment
        return found
    return installed(folder / "stand-in", engine) if engine in COMMANDS else {}


def aws_batch_pool(*command: str, **changes: Any) -> dict[str, Any]:
    """A pool of the server of the tests; its command sees its name as only workers do."""
    naming = 'export DPSTREAM_PROCESS="${AWS_BATCH_JOB_ID/:/.}-$AWS_BATCH_JOB_ATTEMPT"; exec "$@"'
    section = {"queue": QUEUE, **changes.pop("aws_batch", {})}
    return {
        "engine": "aws_batch",
        "image": "labeler:1",
        "command": ("bash", "-c", naming, "bash", *command),
        "aws_batch": section,
        **changes,
    }


def until(fleet: Fleet, test: Callable[[Launch], bool], name: str = NAME) -> Launch:
    """The launch, once it passes the test."""
    deadline = time.monotonic() + PROMPT
    while True:
        found = {launch.name: launch for launch in fleet.running()}
        if name in found and test(found[name]):
            return found[name]
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def end_all(fleet: Fleet) -> None:
    """Asks every worker to stop until none is left: Slurm loses the signal to a job whose script
    has not begun."""
    deadline = time.monotonic() + PROMPT
    while launches := [launch for launch in fleet.running() if launch.alive]:
        for launch in launches:
            fleet.end(launch)
        assert time.monotonic() < deadline, launches
        time.sleep(0.2)


def until_gone(fleet: Fleet) -> None:
    deadline = time.monotonic() + PROMPT
    while any(launch.alive for launch in fleet.running()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
