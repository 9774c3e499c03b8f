"""The report's charts, one function each: from numbers to geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpstream.report.lanes import Clock
from dpstream.report.plots import (
    LEFT,
    TOP,
    Line,
    Mark,
    Plot,
    Rect,
    Rule,
    Scale,
    Tick,
    duration,
    linear,
    logarithmic,
    percent,
    polyline,
)
from dpstream.services.coordinator.views.work import Span
from dpstream.shared.atoms.deviation import BINS
from dpstream.shared.atoms.frames import Floats, Ints
from dpstream.shared.messages import SERVICES
from dpstream.shared.values import Counts, Trust

SMALL = (330.0, 210.0)
MEDIUM = (440.0, 300.0)
WIDE = 1080.0
LANE = 20.0
MOST_LANES = 40
"""Lanes drawn; a cloud campaign has thousands of workers."""
NAME = 116.0
"""Pixels for a worker's name."""
VERDICTS = ("accurate", "candidate", "failed")


def _blank(
    title: str, x_title: str, y_title: str, size: tuple[float, float] = MEDIUM
) -> tuple[Plot, tuple[float, float], tuple[float, float]]:
    """An empty chart, and the pixel ranges of its axes."""
    plot = Plot(title, x_title, y_title, *size)
    return plot, (plot.left, plot.right), (plot.bottom, plot.top)


def _horizontal(plot: Plot, y: float, text: str) -> Rule:
    return Rule(plot.left, y, plot.right, y, text)


def _vertical(plot: Plot, x: float, text: str) -> Rule:
    return Rule(x, plot.bottom, x, plot.top, text)


# ------------------------------------------------------------------------------- deviations


def histogram(title: str, counts: Ints, trust: Trust | None) -> Plot:
    """Frames `(48,)` by deviation, coloured by what the trust levels make of the bin's middle."""
    unit = "eV/Å" if trust is None or trust.relative is None else "relative"
    plot, xs, ys = _blank(title, f"largest force deviation ({unit})", "share of frames", SMALL)
    levels = {} if trust is None else _positive(trust)
    filled = np.flatnonzero(counts)
    low = min([float(BINS[filled[0]]), *levels.values()]) if len(filled) else 1e-3
    high = max([float(BINS[filled[-1] + 1]), *levels.values()]) if len(filled) else 1.0
    x = Scale(low / 1.3, high * 1.3, *xs, log=True)
    total = int(counts.sum()) or 1
    y = linear([float(counts.max()) / total], *ys)
    plot.x_ticks, plot.y_ticks = x.ticks(), y.ticks(4, percent)
    for i in filled:
        left, right = float(BINS[i]), float(BINS[i + 1])
        share = int(counts[i]) / total
        text = f"{left:.3g} to {right:.3g} {unit}: {counts[i]} frames, {percent(share)}"
        top = y(share)
        kind = _kind(math.sqrt(left * right), trust)
        start, width = x(left) + 0.5, x(right) - x(left) - 1
        plot.rects.append(Rect(start, top, width, plot.bottom - top, kind, text))
    plot.rules = _levels(plot, x, levels)
    plot.note = f"{total} frames"
    return plot


def _positive(trust: Trust) -> dict[str, float]:
    """The trust levels that have a place on a logarithmic axis: not a lower level of zero, with
    which all frames are candidates."""
    levels = {"low": trust.low, "high": trust.high}
    return {name: level for name, level in levels.items() if level > 0}


def _levels(plot: Plot, x: Scale, levels: Mapping[str, float]) -> list[Rule]:
    return [_vertical(plot, x(level), f"{name} {level:g}") for name, level in levels.items()]


def _kind(deviation: float, trust: Trust | None) -> str:
    if trust is None:
        return "plain"
    return VERDICTS[(deviation >= trust.low) + (deviation >= trust.high)]


@dataclass(frozen=True)
class RoundBar:
    """One round of one condition. `name` goes under the bar, `about` into its tooltip."""

    name: str
    about: str
    counts: Counts


def rounds(title: str, bars: Sequence[RoundBar], accurate_ratio: float) -> Plot:
    """Accurate, candidate and failed shares of one condition over rounds, stacked."""
    plot, xs, ys = _blank(title, "round", "share of checks", SMALL)
    y = Scale(0.0, 1.0, *ys)
    plot.y_ticks = y.ticks(4, percent)
    slot = (xs[1] - xs[0]) / max(len(bars), 4)
    every = math.ceil(26 / slot)
    for position, bar in enumerate(bars):
        left = xs[0] + position * slot
        plot.rects += _stack(bar, left + slot * 0.12, slot * 0.76, y)
        if position % every == 0:
            plot.x_ticks.append(Tick(left + slot / 2, bar.name))
    plot.rules = [_horizontal(plot, y(accurate_ratio), f"needed {percent(accurate_ratio)}")]
    return plot


def _stack(bar: RoundBar, left: float, width: float, y: Scale) -> list[Rect]:
    rects, below, total = [], 0.0, bar.counts.total or 1
    for kind in VERDICTS:
        count = getattr(bar.counts, kind)
        top, bottom = y(below + count / total), y(below)
        text = f"{bar.about}: {count} of {total} {kind}, {percent(count / total)}"
        if count:
            rects.append(Rect(left, top, width, bottom - top, kind, text))
        below += count / total
    return rects


# ------------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class ChartPoint:
    """A measured value, how far it may reach, and whether the series' line goes through it."""

    x: float
    y: float
    about: str
    whisker: tuple[float, float] | None = None
    hollow: bool = False
    joined: bool = True


def series(
    title: str,
    x_title: str,
    y_title: str,
    groups: Mapping[str, Sequence[ChartPoint]],
    rules: Mapping[str, float],
    names: Mapping[float, str] | None = None,
) -> Plot | None:
    """Values over x, one colour and shape per group; by powers of ten where they span much.
    `names`: what to write under given x, instead of numbers. None without a finite value."""
    groups = {kind: [p for p in points if _drawable(p)] for kind, points in groups.items()}
    points = [point for group in groups.values() for point in group]
    if not points:
        return None
    plot, xs, ys = _blank(title, x_title, y_title)
    values = [v for p in points for v in (p.y, *(p.whisker or ()))] + list(rules.values())
    y = _value_scale(values, ys)
    x = _x_scale([*(p.x for p in points), *(names or ())], xs, names is not None)
    plot.x_ticks = x.ticks() if names is None else _named_ticks(x, names)
    plot.y_ticks = y.ticks()
    for kind, group in groups.items():
        line = sorted({p.x: p for p in group if p.joined}.values(), key=lambda p: p.x)
        if len(line) > 1:
            plot.lines.append(Line(polyline((x(p.x), y(p.y)) for p in line), kind))
        plot.marks += [_mark(p, kind, x, y) for p in group]
    plot.rules = [_horizontal(plot, y(value), text) for text, value in rules.items()]
    return plot


def _drawable(point: ChartPoint) -> bool:
    return math.isfinite(point.y) and point.y > 0


def _value_scale(values: Sequence[float], ends: tuple[float, float]) -> Scale:
    positive = [v for v in values if math.isfinite(v) and v > 0]
    if max(positive) / min(positive) > 8:
        return logarithmic(positive, *ends)
    return linear(positive, *ends)


def _x_scale(values: Sequence[float], ends: tuple[float, float], named: bool) -> Scale:
    low, high = min(values), max(values)
    if named:
        return Scale(low - 0.5, max(high, low + 1) + 0.5, *ends)
    return linear([high], *ends)


def _named_ticks(x: Scale, names: Mapping[float, str]) -> list[Tick]:
    every = math.ceil(len(names) / 12)
    return [Tick(x(at), text) for at, text in sorted(names.items())[::every]]


def _mark(point: ChartPoint, kind: str, x: Scale, y: Scale) -> Mark:
    whisker = None
    if point.whisker is not None:
        ends = [v if math.isfinite(v) else y.high for v in point.whisker]
        whisker = (y(max(ends[0], y.low)), y(min(ends[1], y.high)))
    return Mark(x(point.x), y(point.y), kind, point.about, point.hollow, whisker)


# ------------------------------------------------------------------------------- against the truth


@dataclass(frozen=True)
class AuditPoint:
    """A labelled frame under a committee: deviation ε and true max-atom error ε̂, eV/Å."""

    key: str
    deviation: float
    error: float
    verdict: str


def truth(title: str, pairs: Sequence[AuditPoint], trust: Trust | None) -> Plot | None:
    """True error over deviation, both by powers of ten; None without a finite pair. Frames right
    of `low` that lie low are labels spent needlessly, frames left of it that lie high are errors
    the committee does not see."""
    finite = [p for p in pairs if 0 < p.deviation < math.inf and 0 < p.error < math.inf]
    if not finite:
        return None
    plot, xs, ys = _blank(title, "deviation ε (eV/Å)", "true max-atom error ε̂ (eV/Å)")
    levels = {} if trust is None or trust.relative is not None else _positive(trust)
    both = [*(v for p in finite for v in (p.deviation, p.error)), *levels.values()]
    x, y = logarithmic(both, *xs), logarithmic(both, *ys)
    plot.x_ticks, plot.y_ticks = x.ticks(), y.ticks()
    plot.rules = [Rule(x(x.low), y(y.low), x(x.high), y(y.high), "ε̂ = ε", "diagonal")]
    plot.rules += _levels(plot, x, levels)
    plot.marks = [_judged_mark(p, x, y) for p in finite]
    left_out = len(pairs) - len(finite)
    plot.note = f"{len(finite)} frames" + (f", {left_out} without a finite error" * bool(left_out))
    return plot


def _judged_mark(p: AuditPoint, x: Scale, y: Scale) -> Mark:
    about = f"{p.key[:8]}: ε {p.deviation:.3g}, ε̂ {p.error:.3g} eV/Å, {p.verdict}"
    return Mark(x(p.deviation), y(p.error), p.verdict, about)


def parity(title: str, label: Floats, predicted: Floats) -> Plot:
    """Force components of the model `(n,)` against those of the label `(n,)`, eV/Å."""
    plot, xs, ys = _blank(title, "label force (eV/Å)", "model force (eV/Å)")
    reach = float(max(np.abs(label).max(), np.abs(predicted).max(), 1e-3)) * 1.05
    x, y = Scale(-reach, reach, *xs), Scale(-reach, reach, *ys)
    plot.x_ticks, plot.y_ticks = x.ticks(), y.ticks()
    plot.rules = [Rule(x(-reach), y(-reach), x(reach), y(reach), "", "diagonal")]
    plot.marks = [
        Mark(x(a), y(b), "dot", f"label {a:.3f}, model {b:.3f} eV/Å")
        for a, b in zip(label.tolist(), predicted.tolist(), strict=True)
    ]
    rmse = float(np.sqrt(np.mean((label - predicted) ** 2)))
    plot.note = f"{len(label)} components, RMSE {rmse:.3g} eV/Å"
    return plot


# ------------------------------------------------------------------------------- lanes


def lanes(spans: Sequence[Span], clock: Clock) -> Plot:
    """One lane per worker, its tasks as bars coloured by kind, over time of activity."""
    order = sorted(spans, key=lambda span: (SERVICES.index(span.service), span.worker))
    workers = list(dict.fromkeys(span.worker for span in order))[:MOST_LANES]
    size = (WIDE, TOP + LANE * len(workers) + 42.0)
    plot = Plot("Work by worker over time", "time of activity", "", *size)
    unit, name = _unit(clock.total)
    plot.x_title += f" ({name})"
    x = Scale(0.0, max(clock.total, 1e-3) / unit, LEFT + NAME - 40, plot.right)
    plot.x_ticks = x.ticks(10)
    plot.y_ticks = [Tick(TOP + LANE * (i + 0.5), worker) for i, worker in enumerate(workers)]
    for span in order:
        if span.worker in workers:
            plot.rects.append(_bar(span, workers.index(span.worker), x, clock, unit))
    plot.rules = [_vertical(plot, x(at / unit), "pause") for at in clock.breaks]
    return plot


def _unit(seconds: float) -> tuple[float, str]:
    for size, name in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 3 * size:
            return size, name
    return 1.0, "s"


def _bar(span: Span, lane: int, x: Scale, clock: Clock, unit: float) -> Rect:
    left, right = x(clock(span.start) / unit), x(clock(span.end) / unit)
    took = duration(span.end - span.start)
    about = f"{span.title}: {took}" + ("" if span.outcome == "done" else f", {span.outcome}")
    kind = f"k-{span.kind}" + ("" if span.outcome in ("done", "running") else " lost")
    return Rect(left, TOP + LANE * lane + 3, max(right - left, 0.8), LANE - 6, kind, about)
