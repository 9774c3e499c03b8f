"""One campaign, read once from its ledger.

The state and the messages come from the same segments, so that what is counted from the one and
what is collected from the others belong to the same moment, even while the coordinator writes on.
Each projection is built when it is first needed: a status needs few of them, a report all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dpstream.services.coordinator.ledger.ledger import LedgerReader, messages_of
from dpstream.services.coordinator.ledger.submission import check_submitted
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.committees import Committees
from dpstream.services.coordinator.views.frames import History
from dpstream.services.coordinator.views.overview import CampaignOverview, overview
from dpstream.services.coordinator.views.pace import Pace
from dpstream.services.coordinator.views.plans import Plans
from dpstream.services.coordinator.views.rounds import Rounds
from dpstream.services.coordinator.views.tasks import UNKNOWN, ServiceWork, service_work
from dpstream.services.coordinator.views.work import Work
from dpstream.shared.messages import CampaignSubmitted, Message, Verified
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec


@dataclass(frozen=True)
class Status:
    """What a screen shows of a campaign at one moment. A live view takes it from each new state and
    keeps the committees, of which a state has the newest alone."""

    overview: CampaignOverview
    services: Sequence[ServiceWork]
    committees: Committees

    @staticmethod
    def of(state: State, committees: Committees, progress: Mapping[str, str] = UNKNOWN) -> Status:
        """`progress`: of running tasks, by id. Adds the newest models to `committees`."""
        committees.add_newest(state)
        return Status(overview(state), service_work(state, dict(progress)), committees)


@dataclass(frozen=True)
class CampaignView:
    state: State
    messages: Sequence[Message]
    """All messages of the ledger, in order."""

    @staticmethod
    def read(store: Store, campaign: str) -> CampaignView:
        """Raises NotFound without the campaign, CorruptLedger where its ledger cannot be read or
        is not the one of the campaign that was submitted."""
        reader = LedgerReader.begin(store, campaign)
        messages = tuple(messages_of(reader.new_segments()))
        begun = (each for each in messages if isinstance(each, CampaignSubmitted))
        check_submitted(store, campaign, next(begun, None))
        return CampaignView(reader.state, messages)

    @property
    def spec(self) -> Spec:
        return self.state.spec

    @property
    def verified(self) -> Verified | None:
        """The verification of the final model."""
        return self.state.final.verified

    @cached_property
    def overview(self) -> CampaignOverview:
        return overview(self.state)

    @cached_property
    def committees(self) -> Committees:
        return Committees.of(self.messages)

    @cached_property
    def pace(self) -> Pace:
        return Pace.of(self.messages)

    @cached_property
    def plans(self) -> Plans:
        return Plans.of(self.messages)

    @cached_property
    def rounds(self) -> Rounds:
        return Rounds.of(self.messages)

    @cached_property
    def history(self) -> History:
        return History.of(self.messages)

    @cached_property
    def work(self) -> Work:
        return Work.of(self.messages)

    @property
    def status(self) -> Status:
        return Status.of(self.state, self.committees)

    @property
    def verdict(self) -> tuple[str, str]:
        """Where the campaign stands, in a word, and why."""
        now = self.overview
        if now.verdict is not None:
            return now.verdict.replace("-", " "), now.why or ""
        if now.paused is not None:
            return "paused", now.paused
        if self.rounds.judged:
            last = self.rounds.judged[-1]
            return "under way", f"round {last.round}: {last.why}"
        return "under way", "no round has been judged yet"

    @property
    def limited_by(self) -> tuple[str, str]:
        """Which of *converged*, *training-limited*, *label-noise-limited* and *data-limited*
        holds, and why; *not known yet* before the first committee."""
        if self.overview.verdict == "converged":
            return "converged", self.overview.why or ""
        return self.committees.limited_by
