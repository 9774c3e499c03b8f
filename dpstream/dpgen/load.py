"""Loads a campaign from either kind of file: a spec, or DP-GEN's param file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpstream.dpgen.key_table import is_param, read
from dpstream.dpgen.machines.here import FORWARDED, with_program
from dpstream.dpgen.machines.machine import Machine
from dpstream.dpgen.param import Begun, Converted, Places, convert
from dpstream.dpgen.resume import look_at
from dpstream.dpgen.simplify import is_simplify
from dpstream.inputs.check_training import check_training
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import Spec, load_spec, with_engine_texts
from dpstream.shared.spec.errors import read_document, validated
from dpstream.shared.spec.inline_files import with_texts

MACHINES = {"train", "model_devi", "fp", "train_machine", "model_devi_machine", "fp_machine"}
INIT_BULK, INIT_SURF = {"super_cell", "md_nstep"}, {"super_cell", "millers"}
"""Keys of DP-GEN's other files."""


def load_campaign(
    path: Path,
    code: str | None,
    name: str | None = None,
    machines: Sequence[Machine] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Spec:
    """Load a spec, or convert a DP-GEN param file. `code`: labeling code that replaces the param
    file's fp_style; `name`: of the campaign; `say` gets a line on keys that are ignored. Raises
    `SpecError`."""
    document = read_document(path)
    refuse_others(document, path)
    if is_param(document):
        converted = convert_file(path, path.parent, name, code, None, machines)
        for text in _ignored(converted):
            say(f"{path}: {text}")
        whole = with_engine_texts(with_texts(converted.document, path), path)
        return spec_of(replace(converted, document=whole), path)
    if code is not None:
        raise SpecError(
            f"--code: allowed only with DP-GEN's param.json; set labels.code in {path} instead"
        )
    return load_spec(path)


def _ignored(converted: Converted) -> Iterator[str]:
    """What was given and is not used, in words."""
    keys = [line.key for line in converted.lines if line.fate == "ignored"]
    if keys:
        yield f"ignored, as by DP-GEN: {', '.join(keys)}; dpstream import explains all keys"
    yield from (text for text in converted.differences if text.startswith(FORWARDED))


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


def convert_file(
    path: Path,
    target: Path,
    name: str | None,
    code: str | None,
    run: Path | None,
    machines: Sequence[Machine] = (),
) -> Converted:
    """Convert a param file to a campaign whose spec will be in folder `target`. `run`: working
    folder of a DP-GEN run to continue; `machines`: of its machine file. Raises `SpecError` naming
    file and key."""
    places = Places(path.parent, target)
    values = read(path)
    refuse_others(values, path)
    if not is_param(values):
        raise SpecError(
            f"{path}: not a param.json of `dpgen run`: has none of model_devi_jobs, sys_configs, "
            "fp_style (or is a campaign spec)"
        )
    begun = Begun() if run is None else look_at(run, places.place)
    with errors_at(str(path), SpecError):
        converted = convert(values, name or named_after(path), places, code, begun)
    document, notes = with_program(converted.document, machines, path.parent, places.place)
    return replace(converted, document=document, differences=(*notes, *converted.differences))


def spec_of(converted: Converted, path: Path) -> Spec:
    """Validate the converted spec. Errors name `path`, the file it was converted from."""
    spec = validated(Spec, converted.document, f"{path}: ")
    with errors_at(f"{path}: default_training_param", SpecError):
        check_training(spec)
    return spec


def named_after(path: Path) -> str:
    """A campaign name from the file name, or from the folder name if the file is a param file."""
    folder = path.absolute().parent.name
    base = folder if path.stem.lower().startswith("param") and folder else path.stem
    return re.sub(r"[^a-z0-9]+", "-", base.lower()).strip("-")[:63] or "dpgen"
