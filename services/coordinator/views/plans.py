"""The plans of a campaign, one after another: what changed, when and by whom.

Built from the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dpstream.services.coordinator.views.projection import Changes, Projection
from dpstream.shared import messages as m


@dataclass
class Plans(Projection):
    """`answers`: what became of the amendments, in order; `asked`: amendments by id."""

    answers: list[m.PlanChanged | m.AmendmentRefused] = field(default_factory=list)
    asked: dict[str, m.CampaignAmended] = field(default_factory=dict)

    @property
    def changed(self) -> list[m.PlanChanged]:
        """The plans after the first."""
        return [each for each in self.answers if isinstance(each, m.PlanChanged)]

    @property
    def refused(self) -> list[m.AmendmentRefused]:
        return [each for each in self.answers if isinstance(each, m.AmendmentRefused)]

    @property
    def number(self) -> int:
        """Of the plan in force."""
        return max((plan.number for plan in self.changed), default=1)

    def _asked(self, event: m.CampaignAmended) -> None:
        self.asked.setdefault(event.id, event)

    CHANGES: ClassVar[Changes] = {
        m.CampaignAmended: _asked,
        m.PlanChanged: lambda plans, decision: plans.answers.append(decision),
        m.AmendmentRefused: lambda plans, decision: plans.answers.append(decision),
    }
