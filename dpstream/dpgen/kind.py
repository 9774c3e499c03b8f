"""Recognises DP-GEN's other files, and says which command reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpstream.dpgen.simplify import is_simplify
from dpstream.shared.errors import SpecError

MACHINES = {"train", "model_devi", "fp", "train_machine", "model_devi_machine", "fp_machine"}
INIT_BULK, INIT_SURF = {"super_cell", "md_nstep"}, {"super_cell", "millers"}


def refuse_others(document: Mapping[Any, Any], path: Path) -> None:
    """Raises `SpecError` with the command that reads a machine file, or a param file of another
    command of DP-GEN."""
    keys = document.keys()
    if is_simplify(document):
        raise SpecError(f"{path}: a param.json of `dpgen simplify`; run: dpstream simplify {path}")
    if len(MACHINES & keys) > 1:
        raise SpecError(
            f"{path}: a machine file of DP-GEN; give it after the param file: dpstream run "
            f"param.json {path}"
        )
    for own, command in ((INIT_BULK, "init-bulk"), (INIT_SURF, "init-surf")):
        if own <= keys:
            theirs = command.replace("-", "_")
            raise SpecError(
                f"{path}: a param.json of `dpgen {theirs}`; run: dpstream {command} {path}"
            )
