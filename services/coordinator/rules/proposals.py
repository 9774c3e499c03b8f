"""Frames that external generators offer: taken or refused, judged, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dpstream.services.coordinator.decisions import Decisions
from dpstream.services.coordinator.rules.trust import current_trust
from dpstream.services.coordinator.state import Offer, Proposal, State, proposal_id, written_out
from dpstream.shared import messages as m
from dpstream.shared.values import LONGEST_REASON, FrameVerdict, Screened, campaign_uri

FORMATS = (".npz", ".extxyz")

# ------------------------------------------------------------------------------ taken or refused


def take_proposal(decisions: Decisions) -> None:
    """Refuse a new proposal at once, or keep its frames for the judge."""
    event = decisions.event
    assert isinstance(event, m.StructuresProposed)
    name = proposal_id(event)
    proposal = decisions.state.proposals.waiting[name]
    why = _refusal(decisions.state, event, proposal)
    if why is not None:
        _refuse(decisions, name, why)
    elif event.batch is None:
        decisions.manifest("proposal", f"proposal-{name}", written_out(event).decode())


def _refusal(state: State, event: m.StructuresProposed, proposal: Proposal) -> str | None:
    for rule in (_closed, _misshapen, _too_much):
        why = rule(state, event, proposal)
        if why is not None:
            return why
    return None


def _closed(state: State, event: m.StructuresProposed, proposal: Proposal) -> str | None:
    if state.finished is not None:
        return "the campaign has ended"
    if not state.spec.proposals.enabled:
        return "the campaign takes no proposals"
    return "exploration is over" if state.stages_over else None


def _misshapen(state: State, event: m.StructuresProposed, proposal: Proposal) -> str | None:
    limits, batch = state.spec.proposals, event.batch
    if (batch is None) == (not event.frames):
        return "give frames or a batch, one of the two"
    if proposal.count < 1:
        return "count: how many frames the batch holds"
    if proposal.count > limits.max_frames:
        return f"{proposal.count} frames in one message, above {limits.max_frames}"
    if batch is None:
        return None
    folder = campaign_uri(event.campaign, "proposals", "")
    if not batch.uri.startswith(folder) or not batch.uri.endswith(FORMATS):
        return f"the batch is to be {' or '.join(FORMATS)} under {folder}"[:LONGEST_REASON]
    if batch.size > limits.max_bytes:
        return f"a batch of {batch.size} bytes, above {limits.max_bytes}"
    return None


def _too_much(state: State, event: m.StructuresProposed, proposal: Proposal) -> str | None:
    limits, name = state.spec.proposals, proposal.generator
    if state.proposals.intake[name].frames > limits.frames_per_hour:
        return f"more than {limits.frames_per_hour} frames in an hour; try again later"
    mine = [p for p in state.proposals.waiting.values() if p.generator == name]
    waiting = sum(proposal.count for proposal in mine)
    if waiting > limits.outstanding:
        return f"{waiting} frames wait to be judged, above {limits.outstanding}; try again later"
    return None


def _refuse(decisions: Decisions, name: str, why: str) -> None:
    proposal = decisions.state.proposals.waiting[name]
    _say(decisions, name, proposal, 0, refused=why, first=proposal.first, count=proposal.count)


# ------------------------------------------------------------------------------ sent to the judge


def screen_proposals(decisions: Decisions) -> None:
    """Ask the judge about proposals whose time has come, the most urgent first."""
    state, waiting = decisions.state, decisions.state.proposals.waiting
    unscreened = state.proposals.unscreened
    for name in sorted(unscreened, key=lambda name: (-waiting[name].priority, name)):
        if state.stages_over:
            _refuse(decisions, name, "exploration is over")
        elif _is_due(state, waiting[name]):
            _ask_judge(decisions, name)


def _is_due(state: State, proposal: Proposal) -> bool:
    """Lockstep: with the next round that begins, so that what a round selects from does not
    depend on when exactly it was offered."""
    if state.spec.mode == "lockstep":
        current = state.exploration.round
        return current is not None and current.number > proposal.round
    return proposal.mode == "label" or state.committee.version > 0


def _ask_judge(decisions: Decisions, name: str) -> None:
    state = decisions.state
    proposal = state.proposals.waiting[name]
    judged = proposal.mode == "screen"
    decisions.command(
        m.Screen,
        name,
        title=f"judge {proposal.count} frames of generator {proposal.generator}",
        proposal=name,
        frames=proposal.frames,
        count=proposal.count,
        first=proposal.first,
        committee=state.committee.manifest if judged else None,
        version=state.committee.version if judged else 0,
        trust=current_trust(state) if judged else None,
    )


# ------------------------------------------------------------------------------ what they are told


Word = tuple[Offer, FrameVerdict]


def tell_generators(decisions: Decisions) -> None:
    """Everything that this event, and what was decided upon it, means for offered frames."""
    if not decisions.state.proposals.offers and not decisions.state.proposals.waiting:
        return
    for message in (decisions.event, *decisions.decided):
        tell = TELL.get(type(message))
        if tell is not None:
            tell(decisions, message)


def _screened(decisions: Decisions, event: m.StructuresScreened) -> None:
    command = decisions.state.tasks[event.task].command
    assert isinstance(command, m.Screen)
    name = command.proposal
    proposal = decisions.state.proposals.waiting.get(name)
    if proposal is None:
        return
    if event.refused:
        _refuse(decisions, name, event.refused)
    else:
        verdicts = tuple(_verdict(decisions.state, name, found) for found in event.found)
        _say(decisions, name, proposal, event.version, verdicts=verdicts)


def _verdict(state: State, name: str, found: Screened) -> FrameVerdict:
    """The judge's word, unless the frame is known already or there is no room for it."""
    word = FrameVerdict.model_validate(found.model_dump(exclude={"batch", "row"}))
    if found.row is None or found.key is None:
        return word
    offer, frame = state.proposals.offers.get(found.key), state.labels.frames.get(found.key)
    if offer is not None and (offer.proposal, offer.index) == (name, found.index):
        return word
    if offer is not None:
        why = f"offered before, by {offer.generator} in {offer.correlation}"[:LONGEST_REASON]
        return word.model_copy(update={"verdict": "duplicate", "reason": why})
    if frame is not None:
        why = f"known to the campaign: {frame.status}"
        return word.model_copy(update={"verdict": "duplicate", "reason": why})
    return word.model_copy(update={"verdict": "refused", "reason": "no labels left to buy"})


def _labels(decisions: Decisions, event: m.LabelsDone) -> None:
    _tell(decisions, _answers(decisions.state, event))


def _answers(state: State, event: m.LabelsDone) -> Iterator[Word]:
    for accepted in event.accepted:
        if accepted.key in state.proposals.offers:
            yield _word(state, accepted.key, "labelled", energy=accepted.energy)
    for rejected in event.rejected:
        known = state.labels.frames[rejected.key]
        if rejected.key in state.proposals.offers and known.status == "rejected":
            yield _word(state, rejected.key, "rejected", f"{rejected.rule}: {rejected.detail}")


def _revoked(decisions: Decisions, event: m.TaskRevoked) -> None:
    command = decisions.state.tasks[event.task].command
    keys = [ref.key for ref in command.frames] if isinstance(command, m.Label) else []
    state = decisions.state
    idle = [k for k in keys if k in state.proposals.offers and _is_idle(state, k)]
    if state.finished is not None:
        _tell(decisions, [_word(state, key, "dropped", "the campaign has ended") for key in idle])
        return
    why = f"accurate under committee {state.committee.version}"
    dropped = [key for key in idle if state.labels.frames[key].status == "revoked"]
    _tell(decisions, [_word(state, key, "dropped", why) for key in dropped])


def _judged_again(decisions: Decisions, event: m.FramesJudged) -> None:
    known = {k: v for k, v in event.offered.items() if _only_waits(decisions.state, k)}
    why = f"no candidate under committee {event.version}"
    _tell(decisions, [_word(decisions.state, k, v, why) for k, v in known.items()], event.version)


def _only_waits(state: State, key: str) -> bool:
    """Offered, and no label asked for."""
    return key in state.proposals.offers and key not in state.labels.frames


def _abandoned(decisions: Decisions, decision: m.TaskAbandoned) -> None:
    state, command = decisions.state, decisions.state.tasks[decision.task].command
    if isinstance(command, m.Screen) and command.proposal in state.proposals.waiting:
        _refuse(decisions, command.proposal, f"given up {decision.why}"[:LONGEST_REASON])
    elif isinstance(command, m.Label):
        keys = [ref.key for ref in command.frames if ref.key in state.proposals.offers]
        lost = [key for key in keys if state.labels.frames[key].status == "rejected"]
        _tell(
            decisions, [_word(state, key, "rejected", f"given up {decision.why}") for key in lost]
        )


def _finished(decisions: Decisions, decision: m.CampaignFinished) -> None:
    for name in sorted(decisions.state.proposals.waiting):
        _refuse(decisions, name, "the campaign has ended")
    state = decisions.state
    idle = [key for key in sorted(state.proposals.offers) if _is_idle(state, key)]
    _tell(decisions, [_word(state, key, "dropped", "the campaign has ended") for key in idle])


def _is_idle(state: State, key: str) -> bool:
    """Whether no label of this frame is under way: those are let finish."""
    return key not in state.labels.frames or state.labels.frames[key].status != "pending"


def _word(
    state: State, key: str, verdict: Any, reason: str = "", energy: float | None = None
) -> Word:
    offer = state.proposals.offers[key]
    return offer, FrameVerdict(
        index=offer.index,
        key=key,
        verdict=verdict,
        deviation=offer.deviation,
        energy=energy,
        reason=reason[:LONGEST_REASON],
    )


def _tell(decisions: Decisions, words: Iterable[Word], version: int = 0) -> None:
    """One message for each proposal."""
    by_proposal: dict[str, list[Word]] = {}
    for offer, verdict in words:
        by_proposal.setdefault(offer.proposal, []).append((offer, verdict))
    for name, group in sorted(by_proposal.items()):
        verdicts = sorted((verdict for _, verdict in group), key=lambda verdict: verdict.index)
        _say(decisions, name, group[0][0], version, verdicts=tuple(verdicts))


def _say(decisions: Decisions, name: str, of: Proposal | Offer, version: int, **said: Any) -> None:
    words = [f"{word.index} {word.verdict}" for word in said.get("verdicts", ())]
    decisions.fact(
        m.StructuresJudged,
        name,
        *words,
        generator=of.generator,
        correlation=of.correlation,
        proposal=name,
        version=version,
        **said,
    )


TELL: Mapping[type[m.Message], Callable[[Decisions, Any], None]] = {
    m.StructuresScreened: _screened,
    m.LabelsDone: _labels,
    m.TaskRevoked: _revoked,
    m.FramesJudged: _judged_again,
    m.TaskAbandoned: _abandoned,
    m.CampaignFinished: _finished,
}
