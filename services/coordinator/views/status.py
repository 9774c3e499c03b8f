"""What a screen shows of a campaign at one moment: where it stands, its work, its models.

`dpstream status` takes it once, from the ledger. A live view takes it again and again from the
newest state, and keeps the committees in between: the state knows the newest of them only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.committees import Committees
from dpstream.services.coordinator.views.overview import CampaignOverview, overview
from dpstream.services.coordinator.views.tasks import UNKNOWN, ServiceWork, service_work


@dataclass(frozen=True)
class Status:
    overview: CampaignOverview
    services: Sequence[ServiceWork]
    committees: Committees

    @staticmethod
    def of(state: State, committees: Committees, progress: Mapping[str, str] = UNKNOWN) -> Status:
        """`progress`: of running tasks, by id. Adds the newest models to `committees`."""
        committees.add_newest(state)
        return Status(overview(state), service_work(state, dict(progress)), committees)
