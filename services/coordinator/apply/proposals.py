"""How frames that generators offer come in, are judged, and get their last word."""

from __future__ import annotations

from dpstream.services.coordinator.apply.exploration import offer_candidates
from dpstream.services.coordinator.apply.labels import ask_labels
from dpstream.services.coordinator.apply.tasks import changed, is_live, settle
from dpstream.services.coordinator.state import Intake, KnownFrame, Offer, Proposal, State
from dpstream.shared import messages as m
from dpstream.shared.values import (
    OFFERED,
    Condition,
    FrameRef,
    Offered,
    PoolItem,
    Ref,
    Screened,
    campaign_uri,
    stable_id,
)

HOUR = 3600.0
LAST_WORDS = ("accurate", "failed", "labelled", "rejected", "dropped")
"""Verdicts that end an offer; the others never began one."""


def proposal_id(event: m.StructuresProposed) -> str:
    """What makes a proposal: the same frames offered again in the same breath are the same."""
    content = event.batch.sha256 if event.batch else Ref.to("frames", written_out(event)).sha256
    return stable_id(
        event.campaign, event.generator, event.correlation, event.first, event.mode, content
    )


def written_out(event: m.StructuresProposed) -> bytes:
    """The frames of a proposal that come in the message itself."""
    return Offered(frames=event.frames).model_dump_json().encode()


def structures_proposed(state: State, event: m.StructuresProposed) -> State:
    name = proposal_id(event)
    if name in state.proposals or name in state.answered:
        return state
    written = campaign_uri(event.campaign, "manifests", f"proposal-{name}.json")
    proposal = Proposal(
        generator=event.generator,
        correlation=event.correlation,
        mode=event.mode,
        priority=event.priority,
        first=event.first,
        frames=event.batch or Ref.to(written, written_out(event)),
        count=event.count if event.batch else len(event.frames),
        wave=state.waves,
    )
    return changed(
        state,
        proposals=state.proposals.set(name, proposal),
        unscreened=state.unscreened.set(name, None),
        intake=state.intake.set(event.generator, _taken_in(state, event, proposal)),
    )


def _taken_in(state: State, event: m.StructuresProposed, proposal: Proposal) -> Intake:
    hour = int(event.time // HOUR)
    before = state.intake.get(event.generator)
    if before is None or hour > before.hour:
        before = Intake(hour=hour, frames=0)
    more = min(proposal.count, state.spec.proposals.max_frames)
    return before.model_copy(update={"frames": before.frames + more})


def screen_issued(state: State, command: m.Screen) -> State:
    return changed(state, unscreened=state.unscreened.delete(command.proposal))


def structures_screened(state: State, event: m.StructuresScreened) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = settle(state, task, "done")
    assert isinstance(task.command, m.Screen)
    name = task.command.proposal
    proposal = state.proposals.get(name)
    if proposal is None:
        return state  # answered when the campaign ended
    if proposal.mode == "label":
        return _ask_straight_away(state, name, event)
    new = _unknown(state, event)
    state = _offer(state, name, new)
    for number, batch in enumerate(event.batches):
        count = sum(found.batch == number for found in new)
        if count:
            state = offer_candidates(state, _pool_item(proposal, batch, count, event.version))
    return state


def _unknown(state: State, event: m.StructuresScreened) -> list[Screened]:
    """Good frames that nobody has offered or labelled before."""
    found = {f.key: f for f in reversed(event.found) if f.row is not None}
    return [f for f in event.found if found.get(f.key) is f and not _is_known(state, f.key)]


def _is_known(state: State, key: str | None) -> bool:
    return key is None or key in state.frames or key in state.offers


def _offer(state: State, name: str, frames: list[Screened]) -> State:
    proposal, offers = state.proposals[name], state.offers
    for found in frames:
        assert found.key is not None
        offer = Offer(
            proposal=name,
            generator=proposal.generator,
            correlation=proposal.correlation,
            index=found.index,
            priority=proposal.priority,
            deviation=found.deviation,
        )
        offers = offers.set(found.key, offer)
    return changed(state, offers=offers)


def _ask_straight_away(state: State, name: str, event: m.StructuresScreened) -> State:
    """As many as the budgets allow, in their order."""
    new = _unknown(state, event)[: label_room(state)]
    frames = [
        KnownFrame(
            ref=FrameRef(batch=event.batches[f.batch or 0], index=f.row or 0, key=f.key or ""),
            purpose="proposed",
            origin=f"{state.proposals[name].origin}/{f.index}",
        )
        for f in new
    ]
    state = changed(state, offered_labels=state.offered_labels + len(frames))
    return ask_labels(_offer(state, name, new), frames)


def label_room(state: State) -> int:
    """Labels that generators may still ask for straight away."""
    if state.stages_over or state.finished is not None:
        return 0
    return max(0, min(state.label_room, state.spec.proposals.labels - state.offered_labels))


def _pool_item(proposal: Proposal, batch: Ref, count: int, version: int) -> PoolItem:
    """Candidates of a condition of their own, which is none of any stage."""
    return PoolItem(
        frames=batch,
        count=count,
        trajectory=proposal.origin,
        condition=Condition(system=f"{OFFERED}{proposal.generator}", temperature=0.0),
        version=version,
        planned_ps=0.0,
    )


def structures_judged(state: State, decision: m.StructuresJudged) -> State:
    name, offers = decision.proposal, state.offers
    for word in decision.verdicts:
        offer = offers.get(word.key) if word.key else None
        mine = offer is not None and (offer.proposal, offer.index) == (name, word.index)
        if word.key and mine and word.verdict in LAST_WORDS:
            offers = offers.delete(word.key)
    state = changed(state, offers=offers)
    if name not in state.proposals:
        return state
    unscreened = state.unscreened
    return changed(
        state,
        proposals=state.proposals.delete(name),
        unscreened=unscreened.delete(name) if name in unscreened else unscreened,
        answered=state.answered.set(name, None),
    )
