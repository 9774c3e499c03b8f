"""Handlers by command. Each takes the `ExplorerResources`, the command and its context."""

from __future__ import annotations

from collections.abc import Mapping

from dpstream.services.explorer.tasks.audit import audit
from dpstream.services.explorer.tasks.explore import explore
from dpstream.services.explorer.tasks.judge import judge
from dpstream.services.explorer.tasks.measure import measure
from dpstream.services.explorer.tasks.screen import screen
from dpstream.services.explorer.tasks.select import select
from dpstream.services.explorer.tasks.verify import verify
from dpstream.shared.messages import Audit, Command, Explore, Judge, Measure, Screen, Select, Verify
from dpstream.shared.runtime.context import Handler

HANDLERS: Mapping[type[Command], Handler] = {
    Explore: explore,
    Judge: judge,
    Screen: screen,
    Select: select,
    Audit: audit,
    Measure: measure,
    Verify: verify,
}
