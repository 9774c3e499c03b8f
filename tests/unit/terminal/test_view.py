"""What the live view shows, however narrow the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.campaign import Status
from dpstream.services.coordinator.views.committees import Committees
from dpstream.services.coordinator.views.overview import headline
from dpstream.services.coordinator.views.pace import Pace
from dpstream.shared import messages as m
from dpstream.shared.values import Counts
from dpstream.terminal.live import LiveView
from dpstream.terminal.pace import duration, remaining
from dpstream.terminal.status import clock, next_step, screen, summary
from tests.support.campaigns.campaign_simulator import spec, submission


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


# ------------------------------------------------------------------------------ a round under way


def status(**changes: object) -> Status:
    """Of a campaign that explores three conditions."""
    state, _ = at_work()
    begun = Status.of(state, Committees())
    shares = {
        "methane 300 K 1 bar": Counts(accurate=96, candidate=4),
        "methane 600 K 1 bar": Counts(accurate=50, candidate=30, failed=20),
        "methane 900 K 1 bar": Counts(),
    }
    given = {"round": 2, "rounds": 9, "shares": shares, "label_budget": 400, "budget_used": 50}
    return replace(begun, overview=begun.overview.model_copy(update={**given, **changes}))


def lines(shown: object, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(shown)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_conditions_of_the_round_are_shown_the_worst_first(width: int) -> None:
    shown = lines(screen(status(), 61.0, "Ctrl-C stops", "", "at most 7 more rounds"), width)
    assert max(map(len, shown)) <= width
    start = next(n for n, line in enumerate(shown) if line.startswith("condition"))
    assert "accurate (≥ 95%)  candidate  failed (≤ 2%)  frames" in shown[start]
    assert shown[start + 1].split() == [
        "methane",
        "600",
        "K",
        "1",
        "bar",
        "50.0%",
        "30.0%",
        "20.0%",
        "100",
    ]
    assert shown[start + 2].split() == [
        "methane",
        "300",
        "K",
        "1",
        "bar",
        "96.0%",
        "4.0%",
        "0.0%",
        "100",
    ]
    rows = {line[:19].rstrip(): line[19:] for line in shown[start + 3 :]}
    assert rows["budget"] == "50 of 400 labels (12.5%)"
    assert rows["remaining"] == "at most 7 more rounds"
    assert rows["elapsed"] == "0:01:01"


def test_a_low_screen_names_the_number_of_further_conditions() -> None:
    shown = lines(screen(status(), 61.0, "Ctrl-C stops", most=1))
    assert any(line.startswith("methane 600 K") for line in shown)
    assert not any(line.startswith("methane 300 K") for line in shown)
    assert "1 more, none less accurate" in shown
    assert any(line.startswith("methane 300 K") for line in lines(summary(status())))


def test_a_clock_never_shows_sixty_seconds() -> None:
    assert [clock(59.7), clock(3599.9), clock(36061)] == ["0:00:59", "0:59:59", "10:01:01"]


# ------------------------------------------------------------------------------ plain lines


class Watched:
    """A view without a terminal, of a campaign whose status changes every second."""

    def __init__(self, statuses: Sequence[Status], warnings: Sequence[str] = ()) -> None:
        self.now, self.statuses = 0, statuses
        self.warnings = [*warnings, *[""] * len(statuses)]
        console = Console(width=200, file=io.StringIO(), record=True)
        view = LiveView(
            lambda: statuses[self.now],
            console,
            "Ctrl-C stops",
            lambda: self.warnings[self.now],
            timer=lambda: float(self.now),
        )
        view.watch(self.a_second_later)
        self.lines = console.export_text().splitlines()

    def a_second_later(self) -> bool:
        self.now += 1
        if self.now == len(self.statuses):
            self.now -= 1
            return False
        return True


def with_labels(count: int, **changes: object) -> Status:
    labels = status().overview.labels
    assert labels is not None
    return status(labels=labels.model_copy(update={"labelled": count}), **changes)


def test_without_a_terminal_figures_get_a_line_in_ten_seconds() -> None:
    shown = Watched([with_labels(n) for n in range(25)]).lines
    assert [line.split()[0] for line in shown] == ["0:00:00", "0:00:10", "0:00:20"]
    assert "; 10 labels; 73.0% accurate, 17.0% candidate, 10.0% failed of 200" in shown[1]


def test_without_a_terminal_a_change_of_state_gets_a_line_at_once() -> None:
    later = [with_labels(n, headline="paused: on request") for n in (3, 4)]
    shown = Watched([with_labels(1), with_labels(2), *later]).lines
    assert [line.split()[0] for line in shown] == ["0:00:00", "0:00:02"]
    assert "paused: on request; 3 labels" in shown[1]


def test_without_a_change_nothing_is_printed() -> None:
    assert len(Watched([with_labels(1)] * 60).lines) == 1


def test_each_warning_is_printed_once() -> None:
    shown = Watched([with_labels(1)] * 4, ["", "a", "a", "b"]).lines
    assert shown[1:] == ["0:00:01  warning: a", "0:00:03  warning: b"]


def test_the_first_frame_is_there_before_anything_is_waited_for() -> None:
    console = Console(width=80, height=24, file=io.StringIO(), force_terminal=True)

    def ended_at_once() -> bool:
        assert isinstance(console.file, io.StringIO)
        assert "condition" in console.file.getvalue()
        return False

    LiveView(status, console, "Ctrl-C stops").watch(ended_at_once)


# ------------------------------------------------------------------------------ what is ahead


def test_the_pace_of_the_ledger_and_of_a_view_are_one() -> None:
    verdict = {"stage": 0, "version": 1, "counts": {}, "outcome": "failed", "why": ""}
    judged = [
        m.RoundJudged(id=str(n), campaign="world", time=100.0 * n, round=n, **verdict)
        for n in (1, 2, 4)
    ]
    pace = Pace.of(judged)
    assert pace.seconds == [100.0, 200.0]
    for time, number in ((10.0, 5), (11.0, 5), (40.0, 6), (60.0, 6), (90.0, 7)):
        pace.observe(status(round=number).overview, time)
    assert pace.seconds == [100.0, 200.0, 50.0], "the view began within round 5"


def ahead(seconds: Sequence[float] = (), **changes: object) -> str:
    return remaining(status(**changes).overview, Pace(list(seconds)))


def test_what_is_ahead_is_an_upper_limit() -> None:
    assert ahead() == "at most 7 more rounds of this stage"
    assert ahead([60.0, 9000.0, 600.0]) == (
        "at most 7 more rounds of this stage, about 10 min each (70 min)"
    )
    assert ahead(round=8) == "at most 1 more round of this stage"
    assert ahead(round=9) == "the last round of this stage"
    assert ahead(round=11) == "the last round of this stage", "an amendment lowered the limit"
    assert ahead(stage=None) == "the final model and its tests"
    assert ahead(verdict="converged") == ""


def test_durations_have_one_unit() -> None:
    assert [duration(s) for s in (0.2, 89, 90, 3600 * 1.5, 3600 * 20, 3600 * 50)] == [
        "1 s",
        "89 s",
        "2 min",
        "1.5 h",
        "20 h",
        "2.1 days",
    ]


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, ""),
        ({"standing": "paused"}, "next: dpstream resume world, or dpstream run SPEC"),
        ({"verdict": "converged"}, "next: dpstream export world, dpstream report world"),
        ({"verdict": "not-converged"}, "next: dpstream report world, or change the spec: dpstream"),
        ({"verdict": "cancelled"}, "next: dpstream new NAME --from world begins a campaign"),
    ],
)
def test_whoever_looks_is_told_what_to_type_next(changes: dict[str, object], step: str) -> None:
    said = next_step(status(**changes).overview)
    assert said.startswith(step)
    assert bool(said) == bool(step)
    assert len(said) <= 80


def test_what_is_trained_first_is_no_committee_yet() -> None:
    state, _ = at_work()
    committee = replace(state.committee, training=1)
    assert " · no committee yet · round 0 of" in headline(state)
    assert " · training committee 1 · " in headline(replace(state, committee=committee))
