"""Continues a ledger from before a segment that is lost for good.

A newer writer begins a chain of its own after the last sound segment before the damage. All later
segments then are those of an overtaken writer: when the campaign is opened, their events are
handled again like redeliveries, and their results count once the same work is issued again.
Results of trainings that the store holds beside the ledger are added to them. What follows is
decided anew, so that the state is always one to which decisions lead. A result that is recorded
nowhere else is computed again; labels are found by their frames.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.archive import Known
from dpstream.services.coordinator.ledger.chain import Link
from dpstream.services.coordinator.ledger.examine import Examination
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    LedgerEntry,
    number_in,
    read_segment,
    take_epoch,
)
from dpstream.services.coordinator.untrusted import read_message
from dpstream.shared import messages as m
from dpstream.shared.codec import MAX_BODY, decode_or_none
from dpstream.shared.errors import DigestMismatch
from dpstream.shared.ports import Store
from dpstream.shared.proof import proves
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.values import TRAINED, campaign_uri

REQUESTS = (m.CampaignPaused, m.CampaignResumed, m.TasksRetried)
"""Requests about a state that is gone; the campaign waits until it is resumed anew."""

MOST_BYTES = 2 * MAX_BODY + 100
"""Of a stored training: two messages and a proof."""


@dataclass(frozen=True)
class Salvaged:
    first: int
    """The first segment of the new chain."""
    segments: int
    """Later segments of the former chain that can be read."""
    events: int
    """Their events."""
    trainings: int
    """Results of trainings that were found beside the ledger only."""


def salvage(store: Store, campaign: str, ledger: Examination, now: float) -> Salvaged:
    """Writes the beginning of the new chain: a pause until an operator resumes the campaign. `now`:
    seconds since the epoch."""
    first = next(number for number in ledger.valid if number in ledger.damage)[0]
    later = [number for number in ledger.valid[first:] if number not in ledger.damage]
    entries = [
        entry for number in later for entry in read_segment(store, campaign, number).segment.entries
    ]
    last = read_segment(store, campaign, ledger.valid[first - 2]).link if first > 1 else None
    trainings = _trainings(store, campaign, entries)
    for key in snapshots.listed(store, campaign):
        if number_in(key)[0] >= first:  # a start must not begin with the former chain
            store.create(f"{_former(campaign)}{key.rpartition('/')[2]}", store.get(key))
            store.delete(key)
    if trainings:  # as an overtaken writer would have left them
        _writer(store, campaign, last).append(trainings)
    why = (
        f"repaired by dpstream repair: segment {first} of the ledger was lost; {len(entries)} "
        "later events are handled again"
    )
    pause = m.CampaignPaused(id=str(uuid.uuid4()), campaign=campaign, time=now, why=why)
    requests = [entry.event for entry in entries if isinstance(entry.event, REQUESTS)]
    writer = _writer(store, campaign, last)
    writer.append([LedgerEntry(event) for event in (*requests, pause)])
    writer.write_head()
    recorded = {entry.event.id for entry in entries}
    found = sum(entry.event.id not in recorded for entry in trainings)
    return Salvaged(first, len(later), len(entries), found)


def _writer(store: Store, campaign: str, last: Link | None) -> Ledger:
    """A new writer after this segment."""
    seq = 0 if last is None else last.seq
    return Ledger(store, campaign, take_epoch(store, campaign), seq, link=last)


def _trainings(store: Store, campaign: str, recorded: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """Results of trainings beside the ledger, with their commands. Of a training whose result is
    `recorded`, no other one."""
    results = {
        entry.event.task: entry.event.id
        for entry in reversed(recorded)
        if isinstance(entry.event, m.MemberTrained)
    }
    found = dict[str, LedgerEntry]()
    for command, event in (
        *_trained_in_snapshots(store, campaign),
        *_stored_trainings(store, campaign),
    ):
        is_first = results.get(event.task, event.id) == event.id
        if event.campaign == campaign and event.task == command.task and is_first:
            found[event.id] = LedgerEntry(event, (command,))
    return list(found.values())


def _former(campaign: str) -> str:
    """The folder of snapshots of former chains: a repair that was interrupted needs them again."""
    return campaign_uri(campaign, "damaged", "former", "")


def _trained_in_snapshots(
    store: Store, campaign: str
) -> Iterator[tuple[m.Command, m.MemberTrained]]:
    known = Known()
    for key in (*snapshots.listed(store, campaign), *store.list(_former(campaign))):
        snapshot = snapshots.read(store, key, known)
        if snapshot is not None:
            state = snapshot.state
            final = () if state.final.model is None else (state.final.model,)
            for event in (*state.committee.members.values(), *final):
                yield state.tasks[event.task].command, event


def _stored_trainings(store: Store, campaign: str) -> Iterator[tuple[m.Command, m.MemberTrained]]:
    """Those whose command and event a trainer stored with the model, first attempts first."""
    keys = store.list(campaign_uri(campaign, "results", ""))
    stored = (_read_training(store, key) for key in keys if key.endswith(f"/{TRAINED}"))
    yield from sorted(filter(None, stored), key=lambda training: training[1].attempt)


def stored_training(store: Store, command: m.Train) -> m.MemberTrained | None:
    """What a trainer has stored as the result of this attempt."""
    key = campaign_uri(command.campaign, "results", command.task, command.attempt, TRAINED)
    found = _read_training(store, key) if store.exists(key) else None
    return None if found is None else found[1]


def _read_training(store: Store, key: str) -> tuple[m.Command, m.MemberTrained] | None:
    """Command and event in an object; None unless it is that of the event's attempt and comes from
    the worker that has claimed the attempt: every worker can create results."""
    try:
        lines = store.get(key, most=MOST_BYTES).splitlines()
    except DigestMismatch:
        return None
    command, event = map(decode_or_none, (*lines[:2], b"", b"")[:2])
    if not isinstance(command, m.Train) or not isinstance(event, m.MemberTrained):
        return None
    if key != campaign_uri(event.campaign, "results", event.task, event.attempt, TRAINED):
        return None
    claim = read_message(store, claim_uri(event.campaign, event.task, event.attempt))
    proof = lines[2].decode(errors="replace") if len(lines) > 2 else ""
    return (command, event) if isinstance(claim, m.TaskClaimed) and proves(proof, claim) else None
