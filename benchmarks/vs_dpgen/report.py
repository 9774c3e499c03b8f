"""Prints the tables and the ratios, and writes the results file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.vs_dpgen import accuracy
from benchmarks.vs_dpgen.ablation import Share
from benchmarks.vs_dpgen.accuracy import Errors
from benchmarks.vs_dpgen.outcome import Outcome
from benchmarks.vs_dpgen.size import Size

CONTROL = "dpgen"
ENOUGH = 10
"""Held-out trajectories per temperature below which no speedup is claimed."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    outcome: Outcome
    errors: Errors
    share: Share


Runs = Mapping[str, Sequence[Run]]
"""By arm, one per seed."""


@dataclass(frozen=True)
class Comparison:
    """One arm compared with DP-GEN. speed: DP-GEN's wall time over that of this arm, by seed;
    error: overall force RMSE of this arm over DP-GEN's, with its 95 % bounds."""

    arm: str
    speed: tuple[float, ...]
    error: tuple[float, float, float]

    @property
    def claimed(self) -> bool:
        return self.error[2] < accuracy.LIMIT


def compare(runs: Runs) -> list[Comparison]:
    """Compares every arm with DP-GEN, over the seeds that both have run."""
    control = runs.get(CONTROL, ())
    pairs = {
        arm: list(zip(own, control, strict=False)) for arm, own in runs.items() if arm != CONTROL
    }
    return [_compared(arm, both) for arm, both in pairs.items() if both]


def _compared(arm: str, pairs: Sequence[tuple[Run, Run]]) -> Comparison:
    return Comparison(
        arm,
        tuple(theirs.outcome.wall / ours.outcome.wall for ours, theirs in pairs),
        accuracy.ratio([ours.errors for ours, _ in pairs], [theirs.errors for _, theirs in pairs]),
    )


def verdict(comparison: Comparison, size: Size) -> str:
    """One line with both ratios, and whether a speedup is claimed or why not."""
    value, low, high = comparison.error
    measured = (
        f"{comparison.arm}: speedup over dpgen {spread(comparison.speed)}; "
        f"force RMSE relative to dpgen {value:.3f} [{low:.3f}, {high:.3f}]"
    )
    if size.held_out.trajectories < ENOUGH:
        return f"{measured}; no speedup claimed: reduced size"
    if not comparison.claimed:
        return f"{measured}; no speedup claimed: upper bound not below {accuracy.LIMIT}"
    return f"{measured}; claimed: {median(comparison.speed):.1f} times as fast to the same error"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the range if there is more than one value."""
    text = f"{median(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def show(console: Console, size: Size, runs: Runs, rms: Mapping[str, float]) -> None:
    """`rms`: RMS force of the held-out frames by temperature, eV/Å."""
    console.print(arms_table(runs, rms))
    console.print(ablation_table(runs))
    for comparison in compare(runs):
        console.print(verdict(comparison, size), soft_wrap=True)
    console.print(provenance(size), soft_wrap=True)


def provenance(size: Size) -> str:
    plan = size.held_out
    driver = {
        "pyscf": "PBE/def2-SVP itself (PySCF, coarser grid)",
        "tblite": "GFN2-xTB, not the method of the labels",
    }
    return (
        f"held-out: per temperature {plan.trajectories} independent trajectories of {plan.frames} "
        f"frame(s), {1000 * plan.spacing:g} fs apart, driven by {driver[plan.driver]}; labels "
        "PBE/def2-SVP by PySCF"
    )


def arms_table(runs: Runs, rms: Mapping[str, float]) -> Table:
    table = Table(title="median over seeds and range; force RMSE of the last committee, eV/Å")
    temperatures = [f"{name} (of RMS)" for name in rms]
    for column in ("arm", "wall s", "with the end s", "labels", *temperatures, "overall"):
        table.add_column(column)
    for arm, own in runs.items():
        table.add_row(
            arm,
            spread([run.outcome.wall for run in own], 0),
            spread([run.outcome.ended - run.outcome.started for run in own], 0),
            spread([run.outcome.labels for run in own], 0),
            *(_error_cell(own, name, force) for name, force in rms.items()),
            spread([accuracy.overall(run.errors) for run in own], 3),
        )
    return table


def _error_cell(own: Sequence[Run], name: str, force: float) -> str:
    values = [accuracy.rmse(run.errors[name]) for run in own]
    return f"{spread(values, 3)} ({100 * median(values) / force:.1f} %)"


def ablation_table(runs: Runs) -> Table:
    table = Table(title="wall time by cause, s, median over seeds")
    columns = ("polling", "other idle", "barriers", "cold starts", "processes")
    for column in ("arm", *columns):
        table.add_column(column)
    for arm, own in runs.items():
        shares = [run.share for run in own]
        table.add_row(
            arm,
            spread([share.polling for share in shares], 0),
            spread([share.between for share in shares], 0),
            spread([share.barrier for share in shares], 0),
            spread([share.cold for share in shares], 0),
            spread([sum(run.outcome.processes.values()) for run in own], 0),
        )
    return table


def save(path: Path, size: Size, runs: Runs, rms: Mapping[str, float]) -> None:
    """Writes all data behind the tables as JSON."""
    document: dict[str, Any] = {
        "size": asdict(size),
        "rms_force": dict(rms),
        "arms": {
            arm: [
                {
                    "outcome": asdict(run.outcome),
                    "share": asdict(run.share),
                    "mean_square_errors": {k: v.tolist() for k, v in run.errors.items()},
                }
                for run in own
            ]
            for arm, own in runs.items()
        },
        "comparisons": [{**asdict(c), "claimed": c.claimed} for c in compare(runs)],
    }
    path.write_text(json.dumps(document, indent=1))
