"""Decides what happens to frames that external generators propose.

A proposal is refused at once if it breaks a limit. Otherwise a Screen task checks its frames and,
in mode `screen`, judges them with the committee; candidates become *offers* in the pool. An offer
stays open until its frame is labelled, rejected or no longer a candidate. `report_to_generators`
publishes every verdict on an offered frame as a StructuresJudged event, under the generator's own
numbering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dpstream.services.coordinator.decisions import Decisions
from dpstream.services.coordinator.rules.trust import current_trust
from dpstream.services.coordinator.state import (
    FrameStatus,
    Offer,
    Proposal,
    State,
    proposal_id,
    written_out,
)
from dpstream.shared import messages as m
from dpstream.shared.values import ANONYMOUS, LONGEST_REASON, FrameVerdict, Screened, campaign_uri

FORMATS = (".npz", ".extxyz")

# ----------------------------------------------------------------------------- accepted or refused


def accept_proposal(decisions: Decisions) -> None:
    """Accepts a new proposal, or refuses it at once."""
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
    found = (check(state, event, proposal) for check in (_closed, _malformed, _over_quota))
    return next((why for why in found if why is not None), None)


def _closed(state: State, event: m.StructuresProposed, proposal: Proposal) -> str | None:
    if state.finished is not None:
        return "the campaign has ended"
    if not state.spec.proposals.enabled:
        return "the campaign does not accept proposals"
    return "exploration has ended" if state.stages_over else None


def _malformed(state: State, event: m.StructuresProposed, proposal: Proposal) -> str | None:
    limits, batch = state.spec.proposals, event.batch
    if (batch is None) == (not event.frames):
        return "a proposal contains either frames or a batch"
    if proposal.count < 1:
        return "count must be the number of frames in the batch"
    if proposal.count > limits.max_frames:
        return f"{proposal.count} frames in one message; the limit is {limits.max_frames}"
    if batch is None:
        return None
    folder = campaign_uri(event.campaign, "proposals", "")
    if not batch.uri.startswith(folder) or not batch.uri.endswith(FORMATS):
        return f"the batch must be a {' or '.join(FORMATS)} object under {folder}"[:LONGEST_REASON]
    if batch.size > limits.max_bytes:
        return f"the batch has {batch.size} bytes; the limit is {limits.max_bytes}"
    return None


def _over_quota(state: State, event: m.StructuresProposed, proposal: Proposal) -> str | None:
    limits, source = state.spec.proposals, proposal.source
    if state.proposals.intake[source].frames > limits.frames_per_hour:
        return f"more than {limits.frames_per_hour} frames in one hour; try again later"
    waiting = sum(p.count for p in state.proposals.waiting.values() if p.source == source)
    if waiting > limits.outstanding:
        return (
            f"{waiting} frames are waiting to be judged; the limit is {limits.outstanding}; "
            "try again later"
        )
    return None


def _refuse(decisions: Decisions, name: str, why: str) -> None:
    proposal = decisions.state.proposals.waiting[name]
    _publish(decisions, name, proposal, 0, refused=why, first=proposal.first, count=proposal.count)


# --------------------------------------------------------------------------------------- screening


def screen_proposals(decisions: Decisions) -> None:
    """Issues Screen tasks for the proposals that are due, the most urgent first."""
    state, waiting = decisions.state, decisions.state.proposals.waiting
    unscreened = state.proposals.unscreened
    for name in sorted(unscreened, key=lambda name: (-waiting[name].priority, name)):
        if state.stages_over:
            _refuse(decisions, name, "exploration has ended")
        elif _is_due(state, waiting[name]):
            _issue_screening(decisions, name)


def _is_due(state: State, proposal: Proposal) -> bool:
    """In lockstep, a proposal is screened with the next round that begins, so that the candidates
    of a round do not depend on the exact time of the proposal."""
    if state.spec.mode == "lockstep":
        current = state.exploration.round
        return current is not None and current.number > proposal.round
    return proposal.mode == "label" or state.committee.version > 0


def _issue_screening(decisions: Decisions, name: str) -> None:
    state = decisions.state
    proposal = state.proposals.waiting[name]
    judged = proposal.mode == "screen"
    decisions.command(
        m.Screen,
        name,
        title=f"screen {proposal.count} frames from generator {proposal.generator}",
        proposal=name,
        frames=proposal.frames,
        count=proposal.count,
        first=proposal.first,
        committee=state.committee.manifest if judged else None,
        version=state.committee.version if judged else 0,
        trust=current_trust(state) if judged else None,
    )


# ------------------------------------------------------------------------------ reported verdicts


OfferVerdict = tuple[Offer, FrameVerdict]


def report_to_generators(decisions: Decisions) -> None:
    """Reports every verdict on offered frames that follows from the event and its decisions."""
    if not decisions.state.proposals.offers and not decisions.state.proposals.waiting:
        return
    for message in (decisions.event, *decisions.decided):
        report = REPORTS.get(type(message))
        if report is not None:
            report(decisions, message)


def _screened(decisions: Decisions, event: m.StructuresScreened) -> None:
    command = decisions.before.tasks[event.task].command
    assert isinstance(command, m.Screen)
    name = command.proposal
    proposal = decisions.state.proposals.waiting.get(name)
    if proposal is None:
        return
    if event.refused:
        _refuse(decisions, name, event.refused)
    else:
        verdicts = tuple(_screen_verdict(decisions.state, name, found) for found in event.found)
        _publish(decisions, name, proposal, event.version, verdicts=verdicts)


def _screen_verdict(state: State, name: str, found: Screened) -> FrameVerdict:
    """The verdict of the Screen task; *duplicate* if the campaign already has the frame, *refused*
    if the label budget is exhausted."""
    verdict = FrameVerdict.model_validate(found.model_dump(exclude={"batch", "row"}))
    if found.row is None or found.key is None:
        return verdict
    offer, status = state.proposals.offers.get(found.key), state.frame_status(found.key)
    if offer is not None and (offer.proposal, offer.index) == (name, found.index):
        return verdict
    if offer is not None:
        why = f"already offered by {offer.generator} in {offer.correlation}"[:LONGEST_REASON]
        return verdict.model_copy(update={"verdict": "duplicate", "reason": why})
    if status is not None:
        why = f"already in the campaign: {status}"
        return verdict.model_copy(update={"verdict": "duplicate", "reason": why})
    return verdict.model_copy(update={"verdict": "refused", "reason": "label budget exhausted"})


def _labels(decisions: Decisions, event: m.LabelsDone) -> None:
    _report(decisions, _label_verdicts(decisions.state, event))


def _label_verdicts(state: State, event: m.LabelsDone) -> Iterator[OfferVerdict]:
    """The verdicts of the event that count."""
    for accepted in event.accepted:
        if _is_offer(state, accepted.key, "labelled"):
            yield _offer_verdict(state, accepted.key, "labelled", energy=accepted.energy)
    for rejected in event.rejected:
        if _is_offer(state, rejected.key, "rejected"):
            why = f"{rejected.rule}: {rejected.detail}"
            yield _offer_verdict(state, rejected.key, "rejected", why)


def _is_offer(state: State, key: str, status: FrameStatus) -> bool:
    """Whether the frame is offered and has this status."""
    return key in state.proposals.offers and state.frame_status(key) == status


def _revoked(decisions: Decisions, event: m.TaskRevoked) -> None:
    state = decisions.state
    keys = [ref.key for ref in decisions.before.tasks[event.task].label_frames]
    idle = [k for k in keys if k in state.proposals.offers and _is_idle(state, k)]
    if state.finished is not None:
        _report_all(decisions, idle, "dropped", "the campaign has ended")
        return
    why = f"accurate under committee {state.committee.version}"
    dropped = [key for key in idle if state.frame_status(key) == "revoked"]
    _report_all(decisions, dropped, "dropped", why)


def _judged_again(decisions: Decisions, event: m.FramesJudged) -> None:
    unrequested = {k: v for k, v in event.offered.items() if _is_unrequested(decisions.state, k)}
    why = f"not a candidate under committee {event.version}"
    verdicts = [_offer_verdict(decisions.state, k, v, why) for k, v in unrequested.items()]
    _report(decisions, verdicts, event.version)


def _is_unrequested(state: State, key: str) -> bool:
    """Whether the frame is offered and its label not requested."""
    return key in state.proposals.offers and state.frame_status(key) is None


def _abandoned(decisions: Decisions, decision: m.TaskAbandoned) -> None:
    state, command = decisions.state, decisions.state.tasks[decision.task].command
    if isinstance(command, m.Screen) and command.proposal in state.proposals.waiting:
        _refuse(decisions, command.proposal, f"abandoned {decision.why}"[:LONGEST_REASON])
    elif isinstance(command, m.Label):
        keys = [ref.key for ref in command.frames if ref.key in state.proposals.offers]
        lost = [key for key in keys if state.frame_status(key) == "rejected"]
        _report_all(decisions, lost, "rejected", f"abandoned {decision.why}")


def _finished(decisions: Decisions, decision: m.CampaignFinished) -> None:
    for name in sorted(decisions.state.proposals.waiting):
        _refuse(decisions, name, "the campaign has ended")
    state = decisions.state
    idle = [key for key in sorted(state.proposals.offers) if _is_idle(state, key)]
    _report_all(decisions, idle, "dropped", "the campaign has ended")


def _is_idle(state: State, key: str) -> bool:
    """Whether no label task for this frame is in progress; those are allowed to finish."""
    return state.frame_status(key) != "pending"


def _offer_verdict(
    state: State, key: str, verdict: Any, reason: str = "", energy: float | None = None
) -> OfferVerdict:
    offer = state.proposals.offers[key]
    return offer, FrameVerdict(
        index=offer.index,
        key=key,
        verdict=verdict,
        deviation=offer.deviation,
        energy=energy,
        reason=reason[:LONGEST_REASON],
    )


def _report_all(decisions: Decisions, keys: Iterable[str], verdict: str, reason: str) -> None:
    """Publishes the same verdict on several frames."""
    _report(decisions, [_offer_verdict(decisions.state, key, verdict, reason) for key in keys])


def _report(decisions: Decisions, verdicts: Iterable[OfferVerdict], version: int = 0) -> None:
    """Publishes verdicts, one message per proposal."""
    by_proposal: dict[str, list[OfferVerdict]] = {}
    for offer, verdict in verdicts:
        by_proposal.setdefault(offer.proposal, []).append((offer, verdict))
    for name, group in sorted(by_proposal.items()):
        ordered = sorted((verdict for _, verdict in group), key=lambda verdict: verdict.index)
        _publish(decisions, name, group[0][0], version, verdicts=tuple(ordered))


def _publish(
    decisions: Decisions, name: str, of: Proposal | Offer, version: int, **content: Any
) -> None:
    identity = [f"{frame.index} {frame.verdict}" for frame in content.get("verdicts", ())]
    decisions.fact(
        m.StructuresJudged,
        name,
        *identity,
        generator=of.generator,
        user=None if of.user == ANONYMOUS else of.user,
        correlation=of.correlation,
        proposal=name,
        version=version,
        **content,
    )


REPORTS: Mapping[type[m.Message], Callable[[Decisions, Any], None]] = {
    m.StructuresScreened: _screened,
    m.LabelsDone: _labels,
    m.TaskRevoked: _revoked,
    m.FramesJudged: _judged_again,
    m.TaskAbandoned: _abandoned,
    m.CampaignFinished: _finished,
}
