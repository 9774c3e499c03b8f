"""Reads a recipe file: YAML or JSON with a `labels` section, such as a campaign spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from dpstream.inputs.label_inputs import with_label_inputs
from dpstream.inputs.systems import SystemStructures
from dpstream.running.label_here import LabelMethod
from dpstream.services.labeler.recipes import make_recipe, read_files, unlabelable
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings, Section, load_spec
from dpstream.shared.spec.errors import read_document, validated
from dpstream.shared.spec.inline_files import with_texts
from dpstream.shared.values import Recipe

RecipeOption = Annotated[
    Path,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="How labels are computed: a campaign spec, or a YAML or JSON file with only its "
        "`labels` section, e.g. `labels: {code: tblite}`.",
    ),
]


class RecipeFile(Section):
    labels: LabelSettings
    type_map: tuple[str, ...] = Field(default=(), description="chemical symbols, in model order")


def read_recipe(path: Path) -> tuple[LabelMethod, tuple[str, ...]]:
    """The label method, including files that its settings name, and the type map (empty if the file
    has none). Raises `SpecError` naming file, key, value and remedy, also for settings that give no
    label."""
    method, type_map = _method(path)
    problem = unlabelable(method.labels)
    if problem is not None:
        raise SpecError(f"{path}: {problem}")
    return method, type_map


def recipe_of(path: Path) -> Recipe:
    """The recipe, by which labels may exist already. Raises `SpecError` as `read_recipe` does, but
    not for settings that an earlier release accepted."""
    return _method(path)[0].recipe


def _method(path: Path) -> tuple[LabelMethod, tuple[str, ...]]:
    try:
        labels, type_map = _read(path)
        labels, files = read_files(labels, path.parent)
        return LabelMethod(labels, make_recipe(labels), files), type_map
    except SpecError as error:
        text = str(error)
        raise SpecError(text if text.startswith(f"{path}:") else f"{path}: {text}") from error


def _read(path: Path) -> tuple[LabelSettings, tuple[str, ...]]:
    data = with_texts(read_document(path), path)
    if data.keys() & {"systems", "stages", "initial"}:
        spec = load_spec(path)
        spec = with_label_inputs(spec, SystemStructures(spec, path.parent))
        return spec.labels, spec.type_map
    given = validated(RecipeFile, data, f"{path}: ")
    return given.labels, given.type_map
