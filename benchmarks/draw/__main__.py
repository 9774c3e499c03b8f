"""`python -m benchmarks.draw [WORKDIR]`: trains on frames that were drawn and laid out in different
ways, and prints the force errors on held-out dynamics as a table. Finished trainings are kept in
WORKDIR."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.draw.pool import TEMPERATURES, TYPE_MAP, Data, prepared
from benchmarks.exploration.committee import SMALL, engine
from dpstream.services.explorer.selection.choose import Candidate, SelectionRules, choose
from dpstream.services.trainer.training_input import TrainingRun, build_input
from dpstream.shared.atoms.dataset import Labelled, write_deepmd
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.spec import Training

SEEDS = range(1, 11)
LABELS = 150
STEPS = 2000
MANY = 1000
"""Frames of one trajectory that may be drawn: as many as there are."""
Draw = Literal["random", "uniform"]
Layout = Literal["one", "apart", "even"]
LAYOUTS = {
    "one": "one system",
    "apart": "a system per temperature, by its size",
    "even": "a system per temperature, equally often",
}
DRAWS = {"random": "by turns over temperatures and times", "uniform": "uniformly"}
WEIGHTS = {"one": "prob_sys_size", "apart": "prob_sys_size", "even": "prob_uniform"}


@dataclass(frozen=True)
class Arm:
    """A draw (`selection.policy`), and how a training sees the frames: as one system, or as one of
    the initial frames and one per temperature, as in DP-GEN's folders. A batch holds frames of one
    system, which DeePMD-kit chooses by its size or with the same probability as the others."""

    draw: Draw
    layout: Layout

    def kept(self, work: Path, seed: int) -> Path:
        return work / f"{self.draw}-{self.layout}-{seed}.json"


ARMS = tuple(Arm(draw, layout) for draw, layout in product(DRAWS, LAYOUTS))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trained:
    """Force RMSE by temperature, eV/Å, and the number of drawn frames at each temperature."""

    force: dict[str, float]
    drawn: dict[str, int]

    @property
    def overall(self) -> float:
        """All temperatures with the same weight."""
        return float(np.sqrt(np.mean(np.square([*self.force.values()]))))


def drawn(data: Data, draw: Draw, seed: int) -> list[Candidate]:
    rules = SelectionRules(LABELS, seed, draw, per_trajectory=MANY, min_separation=0.0)
    return list(choose(data.candidates, rules).picks)


def parts_of(data: Data, picks: Sequence[Candidate], layout: Layout) -> list[list[Labelled]]:
    """The frames by system."""
    by_temperature = [
        [data.labels[pick.key] for pick in picks if pick.condition.temperature == kelvin]
        for kelvin in TEMPERATURES
    ]
    parts = [list(data.initial), *filter(None, by_temperature)]
    return [[item for part in parts for item in part]] if layout == "one" else parts


def trained(child: ChildProcess, work: Path, data: Data, arm: Arm, seed: int) -> Trained:
    kept = arm.kept(work, seed)
    if not kept.exists():
        kept.write_text(json.dumps(vars(_train(child, work / "run", data, arm, seed))))
    return Trained(**json.loads(kept.read_text()))


def _train(child: ChildProcess, folder: Path, data: Data, arm: Arm, seed: int) -> Trained:
    shutil.rmtree(folder, ignore_errors=True)
    picks = drawn(data, arm.draw, seed)
    systems = [
        str(path)
        for number, part in enumerate(parts_of(data, picks, arm.layout))
        for path in write_deepmd(part, folder / f"data-{number}", TYPE_MAP)
    ]
    sampling = {"training": {"training_data": {"auto_prob": WEIGHTS[arm.layout]}}}
    run = TrainingRun(TYPE_MAP, tuple(systems), STEPS, seed, member=0)
    document = build_input(Training.model_validate({"input": {**SMALL, **sampling}}), run)
    (folder / "input.json").write_text(json.dumps(document))
    where = {"folder": str(folder)}
    child.call("train", where)
    child.call("freeze", {**where, "checkpoint": f"model.ckpt-{STEPS}", "model": "frozen.pb"})
    model = str(folder / "frozen.pb")
    force = {}
    for kelvin, items in data.held_out.items():
        paths = write_deepmd(items, folder / f"test-{kelvin:g}", TYPE_MAP)
        found = child.call("evaluate", {"model": model, "systems": list(map(str, paths))})
        force[f"{kelvin:g}"] = found["force"]
    counts = Counter(f"{pick.condition.temperature:g}" for pick in picks)
    return Trained(force, {name: counts[name] for name in force})


# ------------------------------------------------------------------------------ the table


def table(work: Path) -> Iterator[str]:
    kelvins = " | ".join(f"{kelvin:g} K" for kelvin in TEMPERATURES)
    yield f"| draw | frames drawn | layout | {kelvins} | all | over the first row |"
    yield "|---|---|---|---|---|---|---|---|"
    first = _runs(ARMS[0], work)
    for arm in ARMS:
        runs = _runs(arm, work)
        pairs = zip(runs, first, strict=True)
        errors = [_mean([run.force[f"{k:g}"] for run in runs]) for k in TEMPERATURES]
        errors += [
            _mean([run.overall for run in runs]),
            _mean([a.overall / b.overall for a, b in pairs]),
        ]
        counts = [np.mean([run.drawn[f"{k:g}"] for run in runs]) for k in TEMPERATURES]
        numbers = ", ".join(f"{count:.0f}" for count in counts)
        yield f"| {DRAWS[arm.draw]} | {numbers} | {LAYOUTS[arm.layout]} | {' | '.join(errors)} |"


def _runs(arm: Arm, work: Path) -> list[Trained]:
    """The trainings of the seeds that all arms have finished."""
    done = [seed for seed in SEEDS if all(each.kept(work, seed).exists() for each in ARMS)]
    return [Trained(**json.loads(arm.kept(work, seed).read_text())) for seed in done]


def _mean(values: Sequence[float]) -> str:
    """Mean ± standard error over the seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    data = prepared(work)
    pool = Counter(candidate.condition.temperature for candidate in data.candidates)
    print(f"pool: {len(data.candidates)} candidates, by temperature {dict(pool)}", file=sys.stderr)
    with engine("dpstream.services.trainer.backends.tensorflow", work) as child:
        for seed, arm in product(SEEDS, ARMS):
            found = trained(child, work, data, arm, seed)
            print(f"seed {seed} {arm}: {found.overall:.4f} eV/Å", file=sys.stderr, flush=True)
    print("\n".join(table(work)))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/draw").resolve())
