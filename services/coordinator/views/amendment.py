"""What an amendment would do, before it is sent; and the coordinator's answer to one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dpstream.services.coordinator.amendment import (
    Amended,
    is_between_rounds,
    mendable,
    newest_plan,
    objection,
    waits,
)
from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.state import State
from dpstream.shared.messages import (
    AmendmentRefused,
    CampaignAmended,
    CampaignSubmitted,
    Message,
    PlanChanged,
)
from dpstream.shared.spec import Spec
from dpstream.shared.values import FrameRef


@dataclass(frozen=True)
class Preview:
    """`refused`: why it would be refused. `changes`: what differs, `effects`: what is done again or
    given up. `waits`: for the end of the running round."""

    refused: str | None = None
    changes: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()
    waits: bool = False


def preview(state: State, event: CampaignAmended) -> Preview:
    """What an amendment does to a campaign in this state."""
    why = objection(state, event)
    if why is not None:
        return Preview(refused=why)
    has_to_wait = waits(state, event)
    at_once = not has_to_wait and not is_between_rounds(state)
    amended = Amended.overtaking(state, event) if at_once else Amended.by(state, event)
    changes, effects = tuple(amended.changes), tuple(amended.effects())
    return Preview(None, changes, effects, has_to_wait)


def answer_to(messages: Iterable[Message], event: CampaignAmended) -> str | None:
    """Why the coordinator has refused an amendment; None if it has not."""
    for message in messages:
        if isinstance(message, AmendmentRefused) and message.amendment == event.id:
            return message.why
    return None


def is_done(messages: Iterable[Message], event: CampaignAmended) -> bool:
    """Whether what an amendment changes is in force."""
    return any(isinstance(each, PlanChanged) and each.amendment == event.id for each in messages)


def begun(state: State, submitted: CampaignSubmitted) -> State:
    """The state of a campaign whose submission is still on its way. The coordinator takes it in
    before an amendment."""
    return apply(state, submitted)


def plan_to_amend(state: State) -> tuple[int, Spec]:
    """Number and content of the plan that the next amendment follows."""
    return state.plan.newest, newest_plan(state)


def can_go_on(state: State) -> bool:
    """Whether an ended campaign can go on by the plan that it has."""
    return mendable(state)


def known_inputs(state: State) -> tuple[dict[str, tuple[FrameRef, ...]], set[str]]:
    """The starting structures of the systems, and the keys of the frames that were submitted to be
    labelled; with those of amendments."""
    submitted, asked = state.submitted, state.plan.asked
    assert submitted is not None
    systems, frames = dict(submitted.systems), list(submitted.frames)
    for event in asked:
        systems |= event.systems
        frames += event.frames
    return systems, {frame.key for frame in frames}
