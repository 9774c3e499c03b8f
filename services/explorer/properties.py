"""The `measure` task: properties by a committee's mean beside those by the recipe, both from the
same labelled structures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from services.explorer.bench import Bench
from services.explorer.evaluation import evaluated
from shared.context import Context
from shared.crystal import PROPERTIES, Point, Quantity
from shared.dataset import Labelled, load_dataset
from shared.messages import Measure, Measured
from shared.spec import Property
from shared.values import Compared, Ref


def measure(bench: Bench, command: Measure, context: Context) -> Measured:
    """What a side cannot have is told, no error: a bad model is what this is to find out."""
    models = bench.committee(command.committee, context).models
    return Measured(
        **context.envelope(),
        version=command.version,
        properties=compared(bench, models, command.points, context),
    )


def compared(
    bench: Bench, models: Sequence[Path], points: Ref, context: Context
) -> tuple[Compared, ...]:
    """Every number of every property that the spec names; `points`: the manifest of their labelled
    structures."""
    labelled = load_dataset(context.fetch, points)
    by_recipe = [Point(item.frame, item.label.energy, item.label.virial) for item in labelled]
    by_models = _by_models(bench, models, labelled, context)
    found: list[Compared] = []
    for number, wanted in enumerate(context.spec().verification.properties):
        rows = [row for row, item in enumerate(labelled) if item.origin == str(number)]
        sides = [[side[row] for row in rows] for side in (by_models, by_recipe)]
        found += _compared(number, wanted, *sides)
    return tuple(found)


def _by_models(
    bench: Bench, models: Sequence[Path], labelled: Sequence[Labelled], context: Context
) -> list[Point]:
    """By the mean of the models."""
    points: dict[int, Point] = {}
    for rows, evaluation in evaluated(bench, models, labelled, context):
        energies, virials = evaluation.energies.mean(axis=0), evaluation.virials
        for n, row in enumerate(rows):
            virial = None if virials is None else virials[:, n].mean(axis=0)
            points[row] = Point(labelled[row].frame, float(energies[n]), virial)
    return [points[row] for row in range(len(labelled))]


def _compared(
    number: int, wanted: Property, model: Sequence[Point], recipe: Sequence[Point]
) -> Iterator[Compared]:
    ours, not_ours = _values(wanted, model)
    theirs, not_theirs = _values(wanted, recipe)
    whys = {"models": not_ours, "recipe": not_theirs}
    why = "; ".join(f"by the {side}: {text}" for side, text in whys.items() if text)
    for name, unit in _names(theirs or ours) or [(wanted.property, "")]:
        yield Compared(
            property=number,
            name=name,
            unit=unit,
            model=ours[name].number if name in ours else None,
            recipe=theirs[name].number if name in theirs else None,
            why=why,
        )


def _values(wanted: Property, points: Sequence[Point]) -> tuple[dict[str, Quantity], str]:
    """By name, or why there are none."""
    try:
        return {value.name: value for value in PROPERTIES[wanted.property].values(points)}, ""
    except ValueError as error:
        return {}, str(error)


def _names(values: Mapping[str, Quantity]) -> list[tuple[str, str]]:
    return [(value.name, value.unit) for value in values.values()]
