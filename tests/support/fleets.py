"""A worker that stays, and waiting for what a fleet engine says of its launch."""

from __future__ import annotations

import time
from collections.abc import Callable

from dpstream.services.coordinator.fleet.plan import name_of
from dpstream.shared.ports import Fleet, Launch

PROMPT = 30.0
MADE = 1_700_000_000.0
NAME = name_of("cpu", MADE)
STAYING = ("bash", "-c", "trap 'exit 75' TERM; touch up.$$ 2>/dev/null; sleep 300 & wait")
"""A worker that gives its task back when it is to stop; its file says that it is up."""


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
