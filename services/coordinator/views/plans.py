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
    """`changed`: the plans after the first; `refused`: amendments without effect; `asked`:
    amendments by id."""

    changed: list[m.PlanChanged] = field(default_factory=list)
    refused: list[m.AmendmentRefused] = field(default_factory=list)
    asked: dict[str, m.CampaignAmended] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Of the plan in force."""
        return self.changed[-1].number if self.changed else 1

    def _asked(self, event: m.CampaignAmended) -> None:
        self.asked.setdefault(event.id, event)

    CHANGES: ClassVar[Changes] = {
        m.CampaignAmended: _asked,
        m.PlanChanged: lambda plans, decision: plans.changed.append(decision),
        m.AmendmentRefused: lambda plans, decision: plans.refused.append(decision),
    }
