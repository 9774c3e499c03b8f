"""What a campaign has produced, for the export and for the label library: models and labelled
frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.coordinator.views.frames import FrameHistory, History
from dpstream.shared.atoms.dataset import Labelled, load_dataset
from dpstream.shared.atoms.frames import decode_labelled
from dpstream.shared.messages import MemberTrained
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.spec import Spec
from dpstream.shared.values import Recipe, Ref, campaign_uri


@dataclass
class CampaignResults:
    """The projections of a campaign together with the store that its objects are in."""

    store: Store
    campaign: str
    view: CampaignView

    @staticmethod
    def of(store: Store, campaign: str) -> CampaignResults:
        """Raises as `CampaignView.read`."""
        return CampaignResults(store, campaign, CampaignView.read(store, campaign))

    @property
    def spec(self) -> Spec:
        return self.view.spec

    @cached_property
    def spec_bytes(self) -> bytes:
        return self.store.get(campaign_uri(self.campaign, "spec.json"))

    @property
    def history(self) -> History:
        return self.view.history

    @property
    def committee(self) -> list[MemberTrained]:
        """Members of the newest complete committee."""
        return self.view.committees.members(self.view.overview.version)

    @property
    def final(self) -> MemberTrained | None:
        return self.view.committees.final

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
        """All labels trained on, oldest first, then those in no dataset version yet."""
        datasets = self.history.datasets
        known = load_dataset(self.fetch, datasets[-1].manifest) if datasets else []
        lives = self.history.lives.values()
        fresh = self.labelled(x for x in lives if x.is_for_training and x.trained is None)
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
