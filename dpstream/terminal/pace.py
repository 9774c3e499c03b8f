"""What is still ahead of a campaign, in words."""

from __future__ import annotations

import math
from statistics import median

from dpstream.services.coordinator.views.overview import CampaignOverview
from dpstream.services.coordinator.views.pace import Pace

KEPT = 5
"""Newest rounds whose median counts: a campaign that was interrupted has a round of hours."""


def remaining(now: CampaignOverview, pace: Pace) -> str:
    """What is still ahead, at most; empty once the campaign is over."""
    if now.verdict is not None:
        return ""
    if now.stage is None:
        return "the final model and its tests"
    more = now.rounds - now.round
    if more <= 0:
        return "the last round of this stage"
    rounds = f"at most {more} more {'round' if more == 1 else 'rounds'} of this stage"
    if not pace.seconds:
        return rounds
    each = median(pace.seconds[-KEPT:])
    return f"{rounds}, about {duration(each)} each ({duration(each * more)})"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            number = seconds / size
            text = f"{number:.1f}" if unit == "h" and number < 10 else f"{math.ceil(number)}"
            return f"{text} {unit}"
    return f"{seconds / 86400:.1f} days"
