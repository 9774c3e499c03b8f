"""What the explorer does with each command. All of it runs at a `Bench`."""

from __future__ import annotations

from collections.abc import Mapping

from services.explorer.bench import Bench
from services.explorer.evaluation import audit, judge
from services.explorer.properties import measure
from services.explorer.proposals import screen
from services.explorer.select import select
from services.explorer.trajectory import explore
from services.explorer.verification import verify
from shared.context import Handler
from shared.messages import Audit, Command, Explore, Judge, Measure, Screen, Select, Verify

__all__ = [
    "HANDLERS",
    "Bench",
    "audit",
    "explore",
    "judge",
    "measure",
    "screen",
    "select",
    "verify",
]

HANDLERS: Mapping[type[Command], Handler] = {
    Explore: explore,
    Judge: judge,
    Screen: screen,
    Select: select,
    Audit: audit,
    Measure: measure,
    Verify: verify,
}
