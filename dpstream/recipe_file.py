"""A recipe by itself: a YAML or JSON file with a `labels` section, which a campaign spec is too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field, ValidationError

from services.labeler.recipes import make_recipe
from shared.errors import SpecError
from shared.sections import Labels, Section
from shared.spec import load_spec
from shared.spec_errors import explain, read_document
from shared.values import Recipe

RecipeOption = Annotated[
    Path,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="How labels are computed: a YAML or JSON file with a `labels` section as in a "
        "campaign spec, e.g. `labels: {code: tblite}`; a whole campaign spec does too.",
    ),
]


class RecipeFile(Section):
    labels: Labels
    type_map: tuple[str, ...] = Field(default=(), description="chemical symbols, in model order")


def read_recipe(path: Path) -> tuple[RecipeFile, Recipe]:
    """What the file says, and the recipe on this machine. `SpecError` names file, key, value and
    remedy."""
    try:
        given = _read(path)
        return given, make_recipe(given.labels)
    except SpecError as error:
        text = str(error)
        raise SpecError(text if text.startswith(f"{path}:") else f"{path}: {text}") from error


def _read(path: Path) -> RecipeFile:
    data = read_document(path)
    if data.keys() & {"systems", "stages", "initial"}:
        spec = load_spec(path)
        return RecipeFile(labels=spec.labels, type_map=spec.type_map)
    try:
        return RecipeFile.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, RecipeFile)}") from error
