"""Applies messages about frames that external generators propose.

A proposal waits until its Screen task is done. Frames that pass become offers: candidates in the
pool, or label requests in mode `label`. A StructuresJudged decision with a final verdict closes the
offer.
"""

from __future__ import annotations

from dpstream.services.coordinator.apply.exploration import add_candidates
from dpstream.services.coordinator.apply.labels import request_labels
from dpstream.services.coordinator.apply.tasks import live_task, settle
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import (
    Intake,
    KnownFrame,
    Offer,
    Proposal,
    State,
    proposal_id,
    written_out,
)
from dpstream.shared import messages as m
from dpstream.shared.values import (
    OFFERED,
    Condition,
    FrameRef,
    PoolItem,
    Ref,
    Screened,
    campaign_uri,
)

HOUR = 3600.0
FINAL_VERDICTS = ("accurate", "failed", "labelled", "rejected", "dropped")
"""Verdicts that close an offer. With *duplicate* and *refused* no offer was opened."""


def structures_proposed(state: State, event: m.StructuresProposed) -> State:
    name, proposals = proposal_id(event), state.proposals
    if name in proposals.waiting or name in proposals.judged:
        return state
    key = campaign_uri(event.campaign, "manifests", f"proposal-{name}.json")
    proposal = Proposal(
        generator=event.generator,
        correlation=event.correlation,
        mode=event.mode,
        priority=event.priority,
        first=event.first,
        frames=event.batch or Ref.to(key, written_out(event)),
        count=event.count if event.batch else len(event.frames),
        round=state.exploration.rounds,
        user=event.user,
    )
    proposals = replace(
        proposals,
        waiting=proposals.waiting.set(name, proposal),
        unscreened=proposals.unscreened.set(name, None),
        intake=proposals.intake.set(proposal.source, _updated_intake(state, event, proposal)),
    )
    return replace(state, proposals=proposals)


def _updated_intake(state: State, event: m.StructuresProposed, proposal: Proposal) -> Intake:
    hour = int(event.time // HOUR)
    before = state.proposals.intake.get(proposal.source)
    if before is None or hour > before.hour:
        before = Intake(hour=hour, frames=0)
    more = min(proposal.count, state.spec.proposals.max_frames)
    return replace(before, frames=before.frames + more)


def screen_issued(state: State, command: m.Screen) -> State:
    unscreened = state.proposals.unscreened.delete(command.proposal)
    return replace(state, proposals=replace(state.proposals, unscreened=unscreened))


def structures_screened(state: State, event: m.StructuresScreened) -> State:
    task = live_task(state, event)
    if task is None:
        return state
    state = settle(state, task)
    assert isinstance(task.command, m.Screen)
    name = task.command.proposal
    proposal = state.proposals.waiting.get(name)
    if proposal is None:
        return state  # refused when the campaign ended
    new = _unknown(state, event)
    if proposal.mode == "label":
        return _request_directly(state, name, event, new[: state.proposal_room])
    counts = [sum(found.batch == number for found in new) for number in range(len(event.batches))]
    items = [
        _pool_item(proposal, batch, count, event.version)
        for batch, count in zip(event.batches, counts, strict=True)
        if count
    ]
    return add_candidates(_offer(state, name, new), items)


def _unknown(state: State, event: m.StructuresScreened) -> list[Screened]:
    """Valid frames that were neither offered before nor are part of the campaign."""
    found = {f.key: f for f in reversed(event.found) if f.row is not None}
    return [f for f in event.found if found.get(f.key) is f and not _is_known(state, f.key)]


def _is_known(state: State, key: str | None) -> bool:
    return key is None or state.frame_status(key) is not None or key in state.proposals.offers


def _offer(state: State, name: str, frames: list[Screened]) -> State:
    proposal, offers = state.proposals.waiting[name], state.proposals.offers
    for found in frames:
        assert found.key is not None
        offer = Offer(
            proposal=name,
            generator=proposal.generator,
            correlation=proposal.correlation,
            index=found.index,
            priority=proposal.priority,
            deviation=found.deviation,
            user=proposal.user,
        )
        offers = offers.set(found.key, offer)
    return replace(state, proposals=replace(state.proposals, offers=offers))


def _request_directly(
    state: State, name: str, event: m.StructuresScreened, new: list[Screened]
) -> State:
    """Requests labels for the frames without the verdict of a committee."""
    origin = state.proposals.waiting[name].origin
    frames = [
        KnownFrame(
            ref=FrameRef(batch=event.batches[f.batch or 0], index=f.row or 0, key=f.key or ""),
            purpose="proposed",
            origin=f"{origin}/{f.index}",
        )
        for f in new
    ]
    state = request_labels(_offer(state, name, new), frames)
    labels = state.proposals.labels + len(frames)
    return replace(state, proposals=replace(state.proposals, labels=labels))


def _pool_item(proposal: Proposal, batch: Ref, count: int, version: int) -> PoolItem:
    """Candidates under a condition of their own that belongs to no stage."""
    return PoolItem(
        frames=batch,
        count=count,
        trajectory=proposal.origin,
        condition=Condition(system=f"{OFFERED}{proposal.source}", temperature=0.0),
        version=version,
        planned_ps=0.0,
    )


def structures_judged(state: State, decision: m.StructuresJudged) -> State:
    name, proposals, offers = decision.proposal, state.proposals, state.proposals.offers
    for frame in decision.verdicts:
        offer = offers.get(frame.key) if frame.key else None
        same = offer is not None and (offer.proposal, offer.index) == (name, frame.index)
        if frame.key and same and frame.verdict in FINAL_VERDICTS:
            offers = offers.delete(frame.key)
    proposals = replace(proposals, offers=offers)
    if name not in proposals.waiting:
        return replace(state, proposals=proposals)
    unscreened = proposals.unscreened
    proposals = replace(
        proposals,
        waiting=proposals.waiting.delete(name),
        unscreened=unscreened.delete(name) if name in unscreened else unscreened,
        judged=proposals.judged.set(name, None),
    )
    return replace(state, proposals=proposals)
