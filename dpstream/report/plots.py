"""Charts as plain geometry: scales, ticks and marks in pixels. The templates draw them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

LEFT, RIGHT, TOP, BOTTOM = 54.0, 10.0, 14.0, 42.0
"""Margins around the plotting area, pixels."""


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True)
class Mark:
    """A point. `kind` is its colour and shape; `whisker`: where its error bar ends."""

    x: float
    y: float
    kind: str
    title: str
    hollow: bool = False
    whisker: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    points: str
    kind: str


@dataclass(frozen=True)
class Rule:
    """A straight reference line with its name."""

    x1: float
    y1: float
    x2: float
    y2: float
    text: str
    kind: str = "rule"


@dataclass
class Plot:
    """One chart, ready to be drawn."""

    title: str
    x_title: str
    y_title: str
    width: float
    height: float
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    rects: list[Rect] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    note: str = ""

    left, top = LEFT, TOP

    @property
    def right(self) -> float:
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        return self.height - BOTTOM


@dataclass(frozen=True)
class Scale:
    """From values to pixels, straight or by powers of ten."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (self._bent(v) for v in (self.low, self.high))
        share = (self._bent(value) - low) / (high - low)
        return round(self.start + min(max(share, -0.02), 1.02) * (self.end - self.start), 1)

    def _bent(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value

    def ticks(self, most: int = 6, text: Callable[[float], str] | None = None) -> list[Tick]:
        values = _log_steps(self.low, self.high) if self.log else _steps(self.low, self.high, most)
        inside = [v for v in values if self.low <= v * 1.000001 and v <= self.high * 1.000001]
        return [Tick(self(v), (text or number)(v)) for v in inside]


def number(value: float) -> str:
    """A few digits; thousands spelled out."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def duration(seconds: float) -> str:
    """In the largest fitting unit: `48 s`, `12.5 min`, `3.1 h`, `2.0 d`."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _steps(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`."""
    raw = (high - low) / most
    size = 10 ** math.floor(math.log10(raw))
    step = next(f * size for f in (1, 2, 5, 10) if f * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_steps(low: float, high: float) -> list[float]:
    """Powers of ten, and steps between them where there is room."""
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades <= 2.2 else (1, 3) if decades <= 4 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [f * 10.0**e for e in range(first, last + 1) for f in factors]


def linear(values: Iterable[float], start: float, end: float) -> Scale:
    """From zero to a round number above the largest value."""
    largest = max(values, default=0.0) or 1.0
    steps = _steps(0.0, largest * 1.05, 5)
    step = steps[1] - steps[0] if len(steps) > 1 else largest
    return Scale(0.0, math.ceil(largest * 1.02 / step) * step, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    """Round numbers around positive values, at least half a decade apart."""
    low, high = min(values) / 1.3, max(values) * 1.3
    middle = math.sqrt(low * high)
    low, high = min(low, middle / 1.8), max(high, middle * 1.8)
    return Scale(_round_down(low), high, start, end, log=True)


def _round_down(value: float) -> float:
    size = 10.0 ** math.floor(math.log10(value))
    return max(f * size for f in (1, 2, 5) if f * size <= value * 1.000001)


def polyline(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
