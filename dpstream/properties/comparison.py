"""Compares properties computed by several sides, each from its own relaxed structure.

Results are printed as a table, written to properties.json and plotted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from dpstream.properties import crystal, defects
from dpstream.properties.basis import (
    PropertyFunction,
    PropertyResult,
    PropertySettings,
    PropertyValue,
    like,
    relaxed,
)
from dpstream.shared.errors import TaskError
from dpstream.terminal.tables import text_table

PROPERTIES: dict[str, tuple[bool, PropertyFunction]] = {
    "relaxation": (False, crystal.relaxation),
    "eos": (True, crystal.equation_of_state),
    "elastic": (True, crystal.elastic),
    "vacancy": (True, defects.vacancy),
    "interstitial": (True, defects.interstitial),
    "surface": (True, defects.surfaces),
    "gamma": (True, defects.gamma_line),
    "phonon": (True, crystal.phonons),
}
"""By name: whether the property requires a crystal, and the function that computes it."""

NEEDS = {"phonon": "phonopy", "vacancy": "spglib"}
"""Optional packages that properties require."""
STYLES = ("o-", "s--")
"""Plot styles of the sides."""
Answer = PropertyResult | str
"""A result, or the reason why there is none."""


@dataclass(frozen=True)
class PropertyComparison:
    """The results for one structure, by property and side."""

    structure: str
    answers: Mapping[str, Mapping[str, Answer]]

    @property
    def complete(self) -> bool:
        answers = (answer for sides in self.answers.values() for answer in sides.values())
        return all(isinstance(answer, PropertyResult) for answer in answers)


def missing(name: str) -> str:
    """The package that a property requires and that is not installed; empty if there is none."""
    package = NEEDS.get(name, "")
    return package if package and find_spec(package) is None else ""


def compare(
    name: str,
    atoms: Any,
    wanted: Sequence[str],
    sides: Mapping[str, Any],
    how: PropertySettings,
    report: Callable[[str], None],
) -> PropertyComparison:
    """Compute the wanted properties that apply to this structure with each side's calculator.
    `report` is called with a line before each step."""
    periodic = bool(atoms.pbc.all())
    chosen = [p for p in wanted if periodic or not PROPERTIES[p][0]]
    answers: dict[str, dict[str, Answer]] = {p: {} for p in chosen}
    for side, calculator in sides.items():
        report(f"{name}: relaxation by {side}")
        try:
            rest = relaxed(like(atoms, calculator), how, cell=periodic)
        except TaskError as error:  # a rejected label, or a relaxation that does not converge
            for p in chosen:
                answers[p][side] = str(error)
            continue
        for p in chosen:
            report(f"{name}: {p} by {side}")
            answers[p][side] = _answer(p, rest, how)
    return PropertyComparison(name, answers)


def _answer(name: str, rest: Any, how: PropertySettings) -> Answer:
    try:
        return PROPERTIES[name][1](rest, how)
    except TaskError as error:  # as above
        return str(error)


# ------------------------------------------------------------------------------ as a table


def table(compared: PropertyComparison, sides: Sequence[str]) -> Table:
    """One row per value. Differences are the first side minus the last."""
    shown = text_table("property", "", "unit", title=compared.structure)
    for column in (*sides, "difference", "%"):
        shown.add_column(column, justify="right")
    for name, answers in compared.answers.items():
        for row in _rows(answers, sides):
            shown.add_row(name, *row)
        for side, answer in answers.items():
            if isinstance(answer, str):
                shown.add_row(name, f"[red]{escape(side)}: {escape(answer)}[/]")
    return shown


def _rows(answers: Mapping[str, Answer], sides: Sequence[str]) -> Iterator[list[str]]:
    by_side = {s: _by_name(answers[s]) for s in sides}
    names = dict.fromkeys(name for values in by_side.values() for name in values)
    for name in names:
        values = [by_side[side].get(name) for side in sides]
        unit = next(value.unit for value in values if value is not None)
        numbers = [None if value is None else value.number for value in values]
        yield [name, unit, *map(_shown, numbers), *_difference(numbers)]


def _by_name(answer: Answer) -> dict[str, PropertyValue]:
    values = answer.values if isinstance(answer, PropertyResult) else ()
    return {value.name: value for value in values}


def _shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}" if abs(number) < 1000 else f"{number:.1f}"


def _difference(numbers: Sequence[float | None]) -> tuple[str, str]:
    first, last = numbers[0], numbers[-1]
    if first is None or last is None or len(numbers) < 2:
        return "–", "–"
    percent = f"{100 * (first - last) / abs(last):.1f}" if abs(last) > 1e-6 else "–"
    return f"{first - last:+.3g}", percent


# ------------------------------------------------------------------------------ as files


def write(
    compared: Sequence[PropertyComparison], folder: Path, about: Mapping[str, Any]
) -> list[Path]:
    """Write `properties.json` with all results, and a plot of each structure's curves."""
    document = {
        **about,
        "structures": {
            c.structure: {
                name: {side: _facts(answer) for side, answer in answers.items()}
                for name, answers in c.answers.items()
            }
            for c in compared
        },
    }
    path = folder / "properties.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    plots = (_plot(c, folder / f"properties-{n}.png") for n, c in enumerate(compared))
    return [path, *filter(None, plots)]


def _facts(answer: Answer) -> dict[str, Any]:
    return {"failed": answer} if isinstance(answer, str) else asdict(answer)


def _plot(compared: PropertyComparison, path: Path) -> Path | None:
    """Plot all curves of a structure, both sides in one panel. None if there are no curves."""
    curves = {
        name: {
            side: a.curve
            for side, a in answers.items()
            if isinstance(a, PropertyResult) and a.curve
        }
        for name, answers in compared.answers.items()
    }
    curves = {name: by_side for name, by_side in curves.items() if by_side}
    if not curves:
        return None
    from matplotlib.figure import Figure  # deferred: slow to import

    figure = Figure(figsize=(4.5 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, by_side) in zip(panels, curves.items(), strict=True):
        for (side, curve), style in zip(by_side.items(), STYLES, strict=False):
            axes.plot(*np.transpose(curve.points), style, label=side, markersize=3)
            axes.set(title=name, xlabel=curve.x_title, ylabel=curve.y_title)
        axes.legend()
    figure.suptitle(compared.structure)
    figure.savefig(path, dpi=150)
    return path
