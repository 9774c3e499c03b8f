"""What a campaign has produced, read from its ledger: models, labelled frames, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.coordinator.ledger.submission import check_submitted
from dpstream.services.coordinator.state import NEVER_LEARNED
from dpstream.services.coordinator.views.frames import FrameHistory, History
from dpstream.shared.atoms.dataset import Labelled, load_dataset
from dpstream.shared.atoms.frames import decode_labelled
from dpstream.shared.messages import MemberTrained, Message, ModelsReady, Train
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.spec import Spec
from dpstream.shared.values import Recipe, Ref, campaign_uri


@dataclass
class CampaignResults:
    """What a campaign has to give, from its ledger."""

    store: Store
    campaign: str
    spec_bytes: bytes
    history: History
    members: dict[int, dict[int, MemberTrained]]
    """By version and number."""
    committee: list[MemberTrained]
    """Members of the newest complete committee."""
    final: MemberTrained | None
    commands: dict[str, Train]

    @staticmethod
    def of(store: Store, campaign: str) -> CampaignResults:
        spec_bytes = store.get(campaign_uri(campaign, "spec.json"))
        messages = list(read_messages(store, campaign))
        members, final, commands = _trained(messages)
        version = max(
            (e.committee.version for e in messages if isinstance(e, ModelsReady)), default=0
        )
        committee = [member for _, member in sorted(members.get(version, {}).items())]
        history = History.of(messages)
        check_submitted(store, campaign, history.submitted)
        return CampaignResults(
            store, campaign, spec_bytes, history, members, committee, final, commands
        )

    @cached_property
    def spec(self) -> Spec:
        return Spec.model_validate_json(self.spec_bytes)

    @property
    def best(self) -> MemberTrained | None:
        """The final model, or else the first of the newest committee."""
        return self.final or (self.committee[0] if self.committee else None)

    @property
    def recipe(self) -> Recipe | None:
        return self.history.submitted.recipe if self.history.submitted else None

    def fetch(self, ref: Ref) -> bytes:
        return fetch(self.store, ref)

    def training_set(self) -> list[Labelled]:
        """Everything trained on, oldest first, then labels no dataset version holds yet."""
        datasets = self.history.datasets
        known = load_dataset(self.fetch, datasets[-1].manifest) if datasets else []
        fresh = self.labelled(
            life
            for life in self.history.lives.values()
            if life.purpose not in NEVER_LEARNED and life.trained is None
        )
        return [*known, *fresh]

    def audit_set(self) -> list[Labelled]:
        """Labels never trained on, by frame key."""
        return self.labelled(x for x in self.history.lives.values() if x.purpose == "audit")

    def labelled(self, lives: Iterable[FrameHistory]) -> list[Labelled]:
        accepted = {life.ref.key: life for life in lives if life.accepted is not None}
        return [self._item(accepted[key]) for key in sorted(accepted)]

    def _item(self, life: FrameHistory) -> Labelled:
        assert life.accepted is not None
        origin = life.chosen.trajectory if life.chosen else ""
        weight = life.chosen.weight if life.chosen else 1.0
        return Labelled(*decode_labelled(self.fetch(life.accepted.label)), origin, weight)

    def test_set(self) -> list[Labelled]:
        return load_dataset(self.fetch, self.history.test) if self.history.test else []


def _trained(
    messages: Sequence[Message],
) -> tuple[dict[int, dict[int, MemberTrained]], MemberTrained | None, dict[str, Train]]:
    """Members by version and number, the final model, and the commands by task."""
    commands: dict[str, Train] = {}
    members: dict[int, dict[int, MemberTrained]] = {}
    final: MemberTrained | None = None
    for message in messages:
        if isinstance(message, Train):
            commands[message.task] = message
        elif isinstance(message, MemberTrained) and message.task in commands:
            if commands[message.task].final:
                final = final or message
            else:
                members.setdefault(message.version, {}).setdefault(message.member, message)
    return members, final, commands
