"""The report's table of plans: what changed, when, and by whom."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.shared.messages import AmendmentRefused, PlanChanged


class PlanRow(NamedTuple):
    """`number` None: the amendment was refused."""

    number: int | None
    at: str
    author: str
    changes: Sequence[str]
    effects: Sequence[str] = ()


def plan_rows(view: CampaignView) -> list[PlanRow]:
    """The plans one after another, with refused amendments; empty if the plan that was submitted is
    the only one."""
    answers, submitted = view.plans.answers, view.history.submitted
    if not answers or submitted is None:
        return []
    first = PlanRow(1, _at(submitted.time), "", ("as it was submitted",))
    return [first, *map(_row, answers)]


def _row(answer: PlanChanged | AmendmentRefused) -> PlanRow:
    at = _at(answer.time)
    if isinstance(answer, AmendmentRefused):
        return PlanRow(None, at, answer.author, (f"refused: {answer.why}",))
    return PlanRow(answer.number, at, answer.author, answer.changes, answer.effects)


def _at(time: float) -> str:
    """`time`: s since the epoch."""
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
