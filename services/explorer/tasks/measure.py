"""The `measure` task: compares properties by the committee's mean with those by the recipe.

Both are computed from single points of the same labelled structures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dpstream.services.explorer.evaluation import evaluated
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.shared.atoms.dataset import Labelled, load_dataset
from dpstream.shared.atoms.properties import PROPERTIES, Quantity, StructurePoint
from dpstream.shared.messages import Measure, Measured
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import PropertyTolerance
from dpstream.shared.values import Compared, Ref


def measure(resources: ExplorerResources, command: Measure, context: Context) -> Measured:
    """Compare the properties. A property that the models cannot give is reported, not raised: the
    task exists to detect bad models."""
    models = resources.committee(command.committee, context).models
    return Measured(
        **context.envelope(),
        version=command.version,
        properties=compared(resources, models, command.points, context),
    )


def compared(
    resources: ExplorerResources, models: Sequence[Path], points: Ref, context: Context
) -> tuple[Compared, ...]:
    """All numbers of the properties in the spec; `points`: manifest of their labelled
    structures."""
    labelled = load_dataset(context.fetch, points)
    by_recipe = [
        StructurePoint(item.frame, item.label.energy, item.label.virial) for item in labelled
    ]
    by_models = _by_models(resources, models, labelled, context)
    found: list[Compared] = []
    for number, wanted in enumerate(context.spec().verification.properties):
        rows = [row for row, item in enumerate(labelled) if item.origin == str(number)]
        sides = [[side[row] for row in rows] for side in (by_models, by_recipe)]
        found += _compared(number, wanted, *sides)
    return tuple(found)


def _by_models(
    resources: ExplorerResources,
    models: Sequence[Path],
    labelled: Sequence[Labelled],
    context: Context,
) -> list[StructurePoint]:
    """Single points by the mean of the models, in the order of `labelled`."""
    points: dict[int, StructurePoint] = {}
    for rows, evaluation in evaluated(resources, models, labelled, context):
        energies, virials = evaluation.energies.mean(axis=0), evaluation.virials
        for n, row in enumerate(rows):
            virial = None if virials is None else virials[:, n].mean(axis=0)
            points[row] = StructurePoint(labelled[row].frame, float(energies[n]), virial)
    return [points[row] for row in range(len(labelled))]


def _compared(
    number: int,
    wanted: PropertyTolerance,
    model: Sequence[StructurePoint],
    recipe: Sequence[StructurePoint],
) -> Iterator[Compared]:
    by_models, models_error = _values(wanted, model)
    by_recipe, recipe_error = _values(wanted, recipe)
    whys = {"models": models_error, "recipe": recipe_error}
    why = "; ".join(f"by the {side}: {text}" for side, text in whys.items() if text)
    names = [(value.name, value.unit) for value in (by_recipe or by_models).values()]
    for name, unit in names or [(wanted.property, "")]:
        yield Compared(
            property=number,
            name=name,
            unit=unit,
            model=by_models[name].number if name in by_models else None,
            recipe=by_recipe[name].number if name in by_recipe else None,
            why=why,
        )


def _values(
    wanted: PropertyTolerance, points: Sequence[StructurePoint]
) -> tuple[dict[str, Quantity], str]:
    """Quantities by name, or the reason why there are none."""
    try:
        return {value.name: value for value in PROPERTIES[wanted.property].values(points)}, ""
    except ValueError as error:
        return {}, str(error)
