"""A campaign over a lossy bus, and checks of its counters.

`LossyDelivery` drives the policy against a `CampaignSimulator`; `check_counters` recounts every
counter of the state.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.archive import Records, read
from dpstream.services.coordinator.ledger.chain import Link
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import NEVER_LEARNED, KnownFrame, State
from dpstream.shared import messages as m
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import FrameRef, stable_id
from tests.support.campaigns.archived import Seen, frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, key, ref, submission

Kind = TypeVar("Kind", bound=m.Message)
Entry = tuple[m.Message, tuple[m.Message, ...]]
"""An event and the decisions it led to."""


class LossyDelivery:
    """One campaign over a lossy bus with failing workers: commands and events are delivered in any
    order, some twice; workers release, crash, go silent and come back too late. `faults` is the
    chance of such a fate; claims are exclusive, as in the store. Without a seed every event is
    delivered once and in order."""

    def __init__(
        self, world: CampaignSimulator, of: Spec, seed: int | None = None, faults: float = 0.0
    ) -> None:
        self.world, self.faults = world, faults
        self.calm, self.random = seed is None, random.Random(seed)
        self.state, self.ledger = State(spec=of), list[Entry]()
        self.commands: list[m.Command] = []
        self.issued: list[m.Command] = []
        self.claims: dict[tuple[str, int], bool] = {}
        """Taken claims: whether a worker has it, and not the coordinator."""
        self.events: list[m.Message] = [submission(of)]

    def run(self, check: Callable[[State], None] = lambda state: None) -> State:
        """Until nothing is under way; `check` sees the state after every event that changes it."""
        while self.events or self.commands:
            before = self.state
            if self.step() and self.state is not before:
                check(self.state)
        return self.state

    def run_resumed(self, check: Callable[[State], None]) -> State:
        """As `run`, and again after each pause: the operator resumes the campaign."""
        state = self.run(check)
        for number in range(50):
            if state.paused is None:
                break
            self.events.append(resumed(number))
            state = self.run(check)
        return state

    def until(self, met: Callable[[State], object]) -> State:
        """Run on until `met`; an error if that never happens."""
        while not met(self.state):
            assert self.events or self.commands, "nothing is under way any more"
            self.step()
        return self.state

    def step(self) -> bool:
        """Deliver one command or, and then it is True, one event."""
        under_way = len(self.events) + len(self.commands)
        number = 0 if self.calm else self.random.randrange(under_way)
        if number >= len(self.events):
            self._start(self.commands.pop(number - len(self.events)))
            return False
        event = self.events.pop(number)
        if not self.calm and self.random.random() < 0.1:
            self.events.append(event)
        self.deliver(event)
        return True

    def deliver(self, event: m.Message) -> tuple[m.Message, ...]:
        """Decide, and carry the decisions out."""
        after, decided = decide(self.state, event)
        if after is not self.state:
            self.ledger.append((event, decided))
        self.state = after
        for decision in decided:
            self.world.learn(decision)
            if isinstance(decision, m.Command):
                self.issued.append(decision)
                self.commands += [decision] * (1 + (not self.calm and self.random.random() < 0.1))
            elif isinstance(decision, m.TaskCancelled):
                self._cancel(decision)
        return decided

    def hold(self, kind: type[m.Command]) -> list[m.Command]:
        """Take the published commands of a kind away, so that nobody claims them."""
        held = [command for command in self.commands if isinstance(command, kind)]
        self.commands = [command for command in self.commands if not isinstance(command, kind)]
        return held

    def take(self, command: m.Command) -> list[m.Message]:
        """A worker claims the command; returns the events with which it ends."""
        self.claims[command.task, command.attempt] = True
        claimed, *results = self.world.answer(command)
        self.deliver(claimed)
        return results

    def learn(self, *names: str) -> None:
        """Adds labelled training frames that are in no dataset yet."""
        for name in names:
            frame = FrameRef(batch=ref(name), index=0, key=key(name))
            self.state = self.state.with_frame(KnownFrame(frame, "train", "labelled", ref(name)))

    def decisions(self, kind: type[Kind]) -> list[Kind]:
        """All decisions of a kind."""
        return [d for _, decided in self.ledger for d in decided if isinstance(d, kind)]

    def _cancel(self, decision: m.TaskCancelled) -> None:
        claim = decision.task, decision.attempt
        if not self.claims.setdefault(claim, False):
            self.events.append(revoked(decision))

    def _start(self, command: m.Command) -> None:
        claim = command.task, command.attempt
        if claim in self.claims:
            return
        self.claims[claim] = True
        answer = self.world.answer(command)
        if self.random.random() >= self.faults:
            self.events += answer
            return
        delivered = [event for event in answer if self.random.random() < 0.5]
        self.events += delivered
        self.events.append(self._ending(command))

    def _ending(self, command: m.Command) -> m.Message:
        fields = CampaignSimulator.envelope(command, "ending")
        fate = self.random.choice(["release", "lapse", "crash", "lapse", "crash", "hopeless"])
        if fate == "release":
            return m.TaskReleased(**fields, reason="spot reclaim")
        if fate == "lapse":
            return m.LeaseLapsed(**fields)
        return m.TaskFailed(**fields, permanent=fate == "hopeless", reason=fate)


def revoked(decision: m.TaskCancelled) -> m.TaskRevoked:
    return m.TaskRevoked(
        id=stable_id("revoked", decision.task, decision.attempt),
        campaign=decision.campaign,
        time=2.0,
        task=decision.task,
        attempt=decision.attempt,
    )


def resumed(number: int = 0) -> m.CampaignResumed:
    return m.CampaignResumed(id=f"resumed-{number}", campaign="world", time=3.0)


def replayed(of: Spec, ledger: Iterable[Entry]) -> State:
    """The state that follows from a ledger."""
    state = State(spec=of)
    for event, decided in ledger:
        for message in (event, *decided):
            state = apply(state, message)
    return state


def check_snapshot(state: State) -> None:
    """A snapshot reads back as the state that was kept."""
    with TemporaryDirectory() as folder:
        store = FolderStore(Path(folder))
        archive = snapshots.write(store, "world", Link(1, 1, ""), 1, state)
        found = snapshots.newest(store, "world", lambda key: True)
        assert found is not None
        for segment in found.state.archive.segments:
            records = read(store, segment)
            assert records == Records(state.archive.ended, state.archive.settled)
    assert found.state == state
    assert found.state.dumps() == state.dumps()
    assert vars(found.state.archive) == vars(archive)


def check_counters(state: State) -> None:
    """Every counter that the state keeps, counted again from scratch."""
    live: dict[str, set[str]] = {}
    for name, task in state.tasks.items():
        if task.is_live:
            live.setdefault(type(task.command).__name__, set()).add(name)
    assert {kind: set(names) for kind, names in state.live.items() if names} == live
    tasks = state.tasks.values()
    running = Counter(type(t.command).__name__ for t in tasks if t.status == "running")
    assert dict(state.running) == running
    frames = frames_of(state)
    awaited = {key for key, f in frames.items() if f.status in ("waiting", "pending")}
    assert state.labels.pending == len(awaited)
    assert state.labels.proposed == sum(frames[key].purpose == "proposed" for key in awaited)
    bought = sum(f.status != "revoked" for f in frames.values())
    checks = state.labels.checks
    assert set(state.labels.unissued_checks) == {k for k, c in checks.items() if c.status == "due"}
    bought += len(checks)
    bought += state.submitted.reference_points if state.submitted else 0
    assert state.label_room == max(0, state.spec.budget.labels - bought)
    assert set(state.labels.waiting) == {key for key, f in frames.items() if f.status == "waiting"}
    asked = Counter(
        ref.key
        for task in state.tasks.values()
        if isinstance(task.command, m.Label) and task.is_live
        for ref in task.command.frames
        if frames[ref.key].status == "pending"
    )
    assert asked == Counter(key for key, f in frames.items() if f.status == "pending")
    archive, points = state.archive, state.submitted.points if state.submitted else ()
    needed = {ref.key for refs in points for ref in refs}
    assert (
        set(archive.settled)
        == {
            key
            for key, f in frames.items()
            if f.status == "labelled" and f.purpose not in NEVER_LEARNED
        }
        - set(state.dataset.fresh)
        - needed
    )
    assert dict(archive.frames_by_purpose) == Counter(f.purpose for f in archive.settled.values())
    ended = Counter(f"{task.kind} {task.status}" for task in archive.ended.values())
    assert dict(archive.tasks_by_status) == ended
    chosen = [f for f in archive.settled.values() if f.stage == state.exploration.stage.index]
    assert state.exploration.stage.learned == sum(f.purpose == "train" for f in chosen)
    _check_stage(state, frames)
    _check_round(state)


def _check_stage(state: State, frames: Mapping[str, Seen]) -> None:
    running = state.exploration.stage
    stage = [f for f in frames.values() if f.stage == running.index]
    answered = Counter(f.status for f in stage if f.status in ("labelled", "rejected"))
    assert (running.answered, running.rejected) == (answered.total(), answered["rejected"])
    audits = [f for f in stage if f.purpose == "audit" and f.status == "labelled"]
    assert dict(running.audits) == {f.key: f.origin for f in audits}
    labelled = [f for f in frames.values() if f.status == "labelled"]
    assert set(state.labels.audited) == {f.key for f in labelled if f.purpose == "audit"}
    learned = [f for f in labelled if f.purpose not in ("audit", "property")]
    assert state.dataset.size + len(state.dataset.fresh) == len(learned)
    assert set(state.dataset.fresh) <= {f.key for f in learned}


def _check_round(state: State) -> None:
    current = state.exploration.round
    if current is None:
        return
    tallies = current.tallies.values()
    assert current.unfinished == sum(not tally.done for tally in tallies)
    found = current.conditions.values()
    checks = sum(by.counts.total + by.dropped for by in found)
    assert checks == sum(tally.checks for tally in tallies)
