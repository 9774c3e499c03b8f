"""All tasks and frames of a campaign, also those that have left the working state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dpstream.services.coordinator.ledger.ledger import LedgerReader
from dpstream.services.coordinator.state import (
    EndedTask,
    FrameStatus,
    Purpose,
    State,
    TaskStatus,
)
from dpstream.shared.codec import kind_of
from dpstream.shared.ports import Store


@dataclass(frozen=True)
class Seen:
    """What views show of a frame."""

    key: str
    status: FrameStatus
    purpose: Purpose
    stage: int
    version: int
    origin: str
    label: str | None
    """The key of its object."""


def whole_state(store: Store, campaign: str) -> State:
    """The state that follows from the whole ledger, without snapshots: all records are in it."""
    reader = LedgerReader.begin(store, campaign)
    reader.update()
    return reader.state


def frames_of(state: State) -> Mapping[str, Seen]:
    """By key. The state must have all records."""
    assert not state.archive.segments
    unsettled = {
        key: Seen(key, f.status, f.purpose, f.stage, f.version, f.origin, f.label and f.label.uri)
        for key, f in state.labels.frames.items()
    }
    settled = {
        key: Seen(key, "labelled", f.purpose, f.stage, f.version, f.origin, f.label)
        for key, f in state.archive.settled.items()
    }
    assert not unsettled.keys() & settled.keys()
    return unsettled | settled


def tasks_of(state: State) -> Mapping[str, EndedTask]:
    """By id. The state must have all records."""
    assert not state.archive.segments
    known = {
        name: EndedTask(
            kind_of(task.command),
            task.command.title,
            task.status,
            task.command.attempt,
            task.lapses,
        )
        for name, task in state.tasks.items()
    }
    assert not known.keys() & state.archive.ended.keys()
    return known | dict(state.archive.ended)


def status_of(state: State, task: str) -> TaskStatus:
    return tasks_of(state)[task].status
