"""Handlers by command. Each takes the `ExplorerResources`, the command and its context."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from dpstream.services.explorer.engines.batched import lacking_here
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.audit import audit
from dpstream.services.explorer.tasks.explore import explore
from dpstream.services.explorer.tasks.judge import judge
from dpstream.services.explorer.tasks.measure import measure
from dpstream.services.explorer.tasks.screen import screen
from dpstream.services.explorer.tasks.select import select
from dpstream.services.explorer.tasks.verify import verify
from dpstream.shared.messages import Audit, Command, Explore, Judge, Measure, Screen, Select, Verify
from dpstream.shared.runtime.context import Context, Handler
from dpstream.shared.spec import Stage
from dpstream.shared.spec.engines import Batched, Gromacs
from dpstream.shared.values import Ref


def unserved(resources: ExplorerResources, command: Command, context: Context) -> str | None:
    """What this worker lacks to load the command's models or to run its engine; None: nothing."""
    if isinstance(command, Explore):
        lacking = _engine_lacks(resources, context.spec().stages[command.stage])
        if lacking is not None:
            return lacking
    return next(filter(None, map(resources.lacks, _models(resources, command, context))), None)


def _engine_lacks(resources: ExplorerResources, stage: Stage) -> str | None:
    if isinstance(stage.engine, Gromacs) and shutil.which(resources.gromacs) is None:
        return f"GROMACS not found ({resources.gromacs}); set DPSTREAM_EXPLORER_GROMACS"
    return lacking_here(stage.md) if isinstance(stage.engine, Batched) else None


def _models(resources: ExplorerResources, command: Command, context: Context) -> tuple[Ref, ...]:
    if isinstance(command, Verify):
        return (command.model,)
    manifest = getattr(command, "committee", None)
    return () if manifest is None else resources.manifest(manifest, context).models


HANDLERS: Mapping[type[Command], Handler] = {
    Explore: explore,
    Judge: judge,
    Screen: screen,
    Select: select,
    Audit: audit,
    Measure: measure,
    Verify: verify,
}
