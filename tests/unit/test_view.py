"""What the live view shows, however narrow the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.campaign import Status
from dpstream.services.coordinator.views.committees import Committees
from dpstream.shared import messages as m
from dpstream.terminal.status import screen
from tests.support.campaign_simulator import spec, submission


def at_work() -> tuple[State, Sequence[m.Label]]:
    """A campaign whose first frames are being labelled."""
    begun = submission(spec())
    state, decided = decide(State(spec=spec()), begun)
    labels = [message for message in decided if isinstance(message, m.Label)]
    for command in labels:
        about = {"campaign": command.campaign, "time": 1.0, "task": command.task, "attempt": 1}
        state = apply(state, m.TaskClaimed(id=f"c{command.task}", worker="w", **about))
    return state, labels


def test_long_words_of_what_is_at_work_leave_room_for_the_rest() -> None:
    state, labels = at_work()
    assert labels
    progress = {command.task: "frame 12 of 40, " * 5 for command in labels}
    console = Console(width=60, file=io.StringIO(), record=True)
    status = Status.of(state, Committees(), progress)
    console.print(screen(status, 61.0, "Ctrl-C stops"))
    rows = {line.split()[0]: line for line in console.export_text().splitlines()}
    assert rows["service"].split() == ["service", "running", "waiting", "running", "tasks"]
    assert rows["labeler"].split()[:2] == ["labeler", str(len(labels))]
    assert "…" in rows["labeler"]
