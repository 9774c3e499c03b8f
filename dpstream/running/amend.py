"""Prepares an amendment of a campaign's plan: nothing is written before a person has agreed."""

from __future__ import annotations

import getpass
import hashlib
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dpstream.inputs.gather import Gathered, perturbed_copies
from dpstream.running.submit import Inputs, as_before
from dpstream.services.coordinator.ledger.ledger import load_state
from dpstream.services.coordinator.ledger.submission import submission
from dpstream.services.coordinator.views.amendment import (
    Preview,
    begun,
    can_go_on,
    known_inputs,
    plan_to_amend,
    preview,
)
from dpstream.shared.errors import NotFound, SpecError
from dpstream.shared.messages import CampaignAmended, CampaignSubmitted
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec, expand_material
from dpstream.shared.values import FrameRef, Ref, campaign_uri


@dataclass(frozen=True)
class Draft:
    """An amendment that was not sent yet, and the objects that it refers to, by key."""

    event: CampaignAmended
    """The complete message."""
    objects: Mapping[str, bytes]
    preview: Preview
    other_workers: bool = False
    """Whether it names other labelers than the plan that it follows."""

    def lines(self) -> Iterator[str]:
        """What a person agrees to."""
        name = self.event.campaign
        yield f"{name}: plan {self.event.follows} becomes plan {self.event.follows + 1}:"
        yield from (f"  {line}" for line in self.preview.changes)
        if self.preview.waits:
            yield "takes effect when the running round has ended"
        yield from self.preview.effects or ("nothing that exists becomes invalid",)

    def store_inputs(self, store: Store) -> None:
        for key, data in self.objects.items():
            store.create(key, data)

    def announced(self, store: Store) -> CampaignAmended:
        """Store the complete message with its inputs; the message as it is published."""
        self.store_inputs(store)
        body = self.event.model_dump_json().encode()
        digest = hashlib.sha256(body).hexdigest()[:16]
        key = campaign_uri(self.event.campaign, "inputs", f"{digest}.json")
        store.create(key, body)
        lists: dict[str, Any] = {"spec": {}, "systems": {}, "atoms": {}, "frames": ()}
        return self.event.model_copy(update={**lists, "complete": Ref.to(key, body)})


def draft(store: Store, spec: Spec, gathered: Gathered, now: float) -> Draft | None:
    """The amendment that turns the newest plan of campaign `spec.name` into `spec`, at `now` (s,
    UTC); None if nothing differs and the campaign has not ended for want of anything that can be
    tried again. Raises SpecError for one that would be refused."""
    state = load_state(store, spec.name)
    if state.submitted is None:
        state = begun(state, _submission(store, spec.name))
    follows, before = plan_to_amend(state)
    after = as_before(expand_material(spec), before)
    if after == before and not can_go_on(state):
        return None
    objects: dict[str, bytes] = {}
    inputs = Inputs(spec.name, lambda key, data: objects.setdefault(key, data))
    added = _added(spec.name, gathered, known_inputs(state)[0])
    event = CampaignAmended(
        id=str(uuid.uuid4()),
        campaign=spec.name,
        time=now,
        follows=follows,
        author=_author(),
        spec=after.model_dump(mode="json"),
        systems={system: inputs.of_system(gathered, system) for system in added},
        atoms={s: max(len(frame.species) for frame in gathered.systems[s]) for s in added},
        frames=inputs.frames(
            perturbed_copies(spec, {system: gathered.systems[system] for system in added})
        ),
    )
    found = preview(state, event)
    if found.refused is not None:
        raise SpecError(f"{spec.name}: refused: {found.refused}")
    other_workers = after.labels.capability != before.labels.capability
    return Draft(event, objects, found, other_workers)


def _submission(store: Store, campaign: str) -> CampaignSubmitted:
    try:
        return submission(store, campaign)
    except NotFound as error:
        raise SpecError(f"{campaign}: the campaign has not begun; submit it first") from error


def once_more(store: Store, campaign: str, now: float) -> Draft | None:
    """The amendment with which an ended campaign goes on by the plan that it has; None if nothing
    would be tried again."""
    state = load_state(store, campaign)
    if not can_go_on(state):
        return None
    follows, plan = plan_to_amend(state)
    event = CampaignAmended(
        id=str(uuid.uuid4()),
        campaign=campaign,
        time=now,
        follows=follows,
        author=_author(),
        spec=plan.model_dump(mode="json"),
    )
    return Draft(event, {}, preview(state, event))


def _added(
    campaign: str, gathered: Gathered, known: Mapping[str, tuple[FrameRef, ...]]
) -> list[str]:
    """Systems that the campaign does not know. Raises SpecError if the files of one that it knows
    hold other structures now."""
    for system, refs in known.items():
        if system not in gathered.systems:
            continue
        now = Inputs(campaign, lambda key, data: None).of_system(gathered, system)
        if [ref.key for ref in now] != [ref.key for ref in refs]:
            raise SpecError(
                f"{campaign}: refused: systems.{system}: its files hold other structures than "
                "those that the campaign knows; add them as a system of another name"
            )
    return [system for system in gathered.systems if system not in known]


def _author() -> str:
    """Who sends it; a broker that states users states them in its place."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:200]
