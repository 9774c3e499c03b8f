"""The picture of what was measured: use of the workers, money and hours, and costs per size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WORKERS, FRAMES = "workers", "frames"
"""What the panels of costs count on their axes."""


@dataclass(frozen=True)
class Point:
    """A bar of group `x` in a panel, or a point at size `x` of a curve; `name`: of the bars of one
    colour, or of the curve."""

    panel: str
    name: str
    x: str | int
    y: float


def kept(path: Path | None, new: Iterable[Point]) -> list[Point]:
    """The points of earlier runs in a file, and the new ones, which replace those of the same place
    and are added to the file."""
    before = json.loads(path.read_text()) if path is not None and path.exists() else []
    points = {(p.panel, p.name, p.x): p for p in [*(Point(**each) for each in before), *new]}
    if path is not None:
        path.write_text(json.dumps([asdict(each) for each in points.values()], indent=1))
    return list(points.values())


def draw(points: Sequence[Point], path: Path) -> None:
    """Writes the picture as SVG: a panel of bars or curves for each of the points' panels."""
    import matplotlib  # deferred: slow to import
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(each.panel for each in points))
    rows = (len(panels) + 1) // 2
    style = {"svg.hashsalt": "dpstream", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 2.6 * rows), layout="constrained")
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, 2, 1 + number)
            mine = [each for each in points if each.panel == panel]
            if isinstance(mine[0].x, int):
                _curves(axes, mine)
            else:
                _bars(axes, mine)
            axes.set_title(panel, fontsize=9)
            if len({each.name for each in mine}) > 1:
                axes.legend(frameon=False, fontsize=7)
        figure.savefig(path, format="svg", metadata={"Date": None})
    print(f"wrote {path}")


def _by_name(points: Iterable[Point]) -> Mapping[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for each in points:
        found.setdefault(each.name, []).append(each)
    return found


def _bars(axes: Any, points: Sequence[Point]) -> None:
    """Bars beside one another in each group, in per cent."""
    groups, names = list(dict.fromkeys(each.x for each in points)), _by_name(points)
    width = 0.8 / len(names)
    for number, (name, mine) in enumerate(names.items()):
        places = [groups.index(each.x) + (number - (len(names) - 1) / 2) * width for each in mine]
        bars = axes.bar(places, [100 * each.y for each in mine], 0.9 * width, label=name)
        axes.bar_label(bars, fmt="%.3g", fontsize=7)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("%")
    axes.margins(y=0.5 if len(names) > 1 else 0.1)  # room for the legend


def _curves(axes: Any, points: Sequence[Point]) -> None:
    """Each curve relative to its value at the smallest size."""
    for name, mine in _by_name(points).items():
        ordered = sorted(mine, key=lambda each: int(each.x))
        values = [each.y / ordered[0].y for each in ordered]
        axes.plot([each.x for each in ordered], values, marker="o", markersize=3, label=name)
    sizes = sorted({int(each.x) for each in points})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_ylabel("relative to the smallest")
