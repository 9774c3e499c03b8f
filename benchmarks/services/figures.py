"""A measured figure next to a published reference value, as a row of a table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured number. `anchor`: the published reference value; `better`: how many times better
    than the anchor, None if there is no anchor."""

    what: str
    measured: str
    anchor: str = ""
    better: float | None = None


def spread(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def milliseconds(
    what: str, seconds: Sequence[float], anchor: float | None = None, high: float | None = None
) -> Figure:
    """A figure of durations in s: median and 95th percentile. `anchor`, `high`: published median
    and 95th percentile, ms."""
    median, p95 = (1e3 * value for value in spread(seconds))
    measured = f"{_both(median, p95)} (n = {len(seconds):,})"
    if anchor is None:
        return Figure(what, measured)
    return Figure(what, measured, _both(anchor, high), anchor / median)


def _both(median: float, p95: float | None) -> str:
    return f"{median:.3g} ms median" + ("" if p95 is None else f", {p95:.3g} ms p95")


def show(title: str, figures: Sequence[Figure]) -> None:
    """Prints a table and the load of the machine."""
    table = Table("what", "measured", "anchor", "better", title=title, title_justify="left")
    for figure in figures:
        times = "" if figure.better is None else f"{figure.better:.3g} ×"
        table.add_row(figure.what, figure.measured, figure.anchor, times)
    console = Console(width=None if os.isatty(1) else 140)
    console.print(table)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} cores, load average {load} (1, 5, 15 min)\n")
