"""What is known of processes, while two threads use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dpstream.services.coordinator.fleet.processes import Processes
from dpstream.shared import messages as m

NAME = "cpu-1-0"
STARTED = m.WorkerStarted(
    id="1",
    time=1.0,
    worker="w",
    host="h",
    process=NAME,
    slots=1,
    queues=("label.toy",),
)


class Interrupted(dict[str, float]):
    """A dictionary in whose operations another thread takes its turn once."""

    def __init__(self, operation: str, other: Callable[[], object]) -> None:
        super().__init__()
        self.operation, self.other = operation, other

    def _interrupt(self, operation: str) -> None:
        if self.operation == operation:
            self.operation = ""
            self.other()

    def pop(self, *given: Any) -> Any:
        found = super().pop(*given)
        self._interrupt("pop")
        return found

    def setdefault(self, *given: Any) -> Any:
        self._interrupt("setdefault")
        return super().setdefault(*given)


def take_in(processes: Processes) -> None:
    processes.take_in(STARTED, 1.0)


def end(processes: Processes) -> None:
    processes.end([NAME], 2.0)


@pytest.mark.parametrize(
    ("first", "operation", "other"), [(end, "pop", take_in), (take_in, "setdefault", end)]
)
def test_a_message_that_arrives_while_its_process_ends_does_not_bring_it_back(
    first: Callable[[Processes], object], operation: str, other: Callable[[Processes], object]
) -> None:
    """It would stay for ever: only a process that is new among the ended ones is removed."""
    processes = Processes()
    processes.up = up = Interrupted(operation, lambda: other(processes))
    first(processes)
    assert up.operation == "", "the other thread had its turn"
    assert processes.ended == {NAME}
    assert (dict(up), processes._started) == ({}, {})
