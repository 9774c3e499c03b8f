"""What another fleet file would change: longer or shorter, cheaper or dearer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from dpstream.services.coordinator.fleet.pools import FleetFile
from dpstream.services.coordinator.simulation.outcome import SimulationOutcome
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import did_you_mean, validated

SHARE = 0.4
"""The smaller `max` that is tried, relative to the workers that there were."""
UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
FORM = "must be POOL.KEY=VALUE, e.g. spot.max=400"


@dataclass(frozen=True)
class Variant:
    """A fleet file with one change, and that change in words."""

    change: str
    file: FleetFile


def usual(file: FleetFile, outcome: SimulationOutcome) -> Iterator[Variant]:
    """Fewer workers in the pool that worked most and, if it was full, twice as many."""
    name = max(outcome.pools, key=lambda each: outcome.pools[each].hours)
    most = outcome.pools[name].most
    for count in (max(1, round(SHARE * most)), 2 * file.pools[name].max):
        is_smaller = count < most
        if is_smaller or (count > most == file.pools[name].max):
            yield _changed(file, name, "max", count)


def given(file: FleetFile, text: str) -> Variant:
    """The change `POOL.KEY=VALUE`. Raises SpecError."""
    where, equals, value = text.partition("=")
    pool, dot, key = where.strip().partition(".")
    if not (equals and dot and key):
        raise SpecError(f"--vary: {text!r}: {FORM}")
    if pool not in file.pools:
        raise SpecError(f"--vary: {pool!r}: no such pool{did_you_mean(pool, file.pools)}; {FORM}")
    try:
        return _changed(file, pool, key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise SpecError(f"--vary: {text!r}: {FORM}") from error


def _changed(file: FleetFile, name: str, key: str, value: Any) -> Variant:
    document = file.model_dump(mode="json", exclude_unset=True)
    pool = document["pools"][name]
    before = getattr(file.pools[name], key, None)
    pool[key] = value
    if key == "max" and isinstance(value, int):  # a pool that is always full stays so
        pool["min"] = value if file.pools[name].min == before else min(pool.get("min", 0), value)
    words = f"{name}: {key} {_shown(value)} instead of {_shown(before)}"
    return Variant(words, validated(FleetFile, document, "--vary: "))


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{value}"


def difference(before: SimulationOutcome, after: SimulationOutcome) -> str:
    """What the second one changes: `6 min longer, 38 % cheaper`."""
    parts = [_time(after.seconds - before.seconds)]
    if before.cost:
        parts.append(_share(after.cost / before.cost - 1, "dearer", "cheaper", "at the same cost"))
    elif before.hours:
        more, fewer = "more worker-hours", "fewer worker-hours"
        parts.append(_share(after.hours / before.hours - 1, more, fewer, "the same worker-hours"))
    if after.verdict != before.verdict:
        parts.append(f"{after.verdict}: {after.why}")
    return ", ".join(parts)


def _time(seconds: float) -> str:
    how = "longer" if seconds > 0 else "shorter"
    size, unit = next((each for each in UNITS if abs(seconds) >= 2 * each[0]), UNITS[-1])
    count = round(abs(seconds) / size)
    return f"{count} {unit} {how}" if count else "as long"


def _share(share: float, more: str, less: str, same: str) -> str:
    percent = round(100 * abs(share))
    return f"{percent} % {more if share > 0 else less}" if percent else same
