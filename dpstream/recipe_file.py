"""A recipe by itself: a YAML or JSON file with a `labels` section, which a campaign spec is too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field, ValidationError

from dpstream.label_inputs import with_label_inputs
from dpstream.relabel import Method
from dpstream.starting import Structures
from services.labeler.recipes import make_recipe, read_files
from shared.errors import SpecError
from shared.inlined import with_texts
from shared.spec import Labels, Section, load_spec
from shared.spec_errors import explain, read_document

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


def read_recipe(path: Path) -> tuple[Method, tuple[str, ...]]:
    """How labels are computed on this machine, files that the settings name included, and the type
    map where there is one. `SpecError` names file, key, value and remedy."""
    try:
        labels, type_map = _read(path)
        labels, files = read_files(labels, path.parent)
        return Method(labels, make_recipe(labels), files), type_map
    except SpecError as error:
        text = str(error)
        raise SpecError(text if text.startswith(f"{path}:") else f"{path}: {text}") from error


def _read(path: Path) -> tuple[Labels, tuple[str, ...]]:
    data = with_texts(read_document(path), path)
    if data.keys() & {"systems", "stages", "initial"}:
        spec = load_spec(path)
        spec = with_label_inputs(spec, Structures(spec, path.parent))
        return spec.labels, spec.type_map
    try:
        given = RecipeFile.model_validate(data)
        return given.labels, given.type_map
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, RecipeFile)}") from error
