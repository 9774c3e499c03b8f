"""`python -m benchmarks.vs_dpgen [--size quick] --workdir DIR [--seeds N] [--training reuse]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter
from rich.console import Console

from benchmarks.vs_dpgen import (
    ablation,
    accuracy,
    cross_check,
    dpgen_arm,
    dpstream_arm,
    dpstream_spec,
)
from benchmarks.vs_dpgen import inputs as inputs_
from benchmarks.vs_dpgen.outcome import Outcome
from benchmarks.vs_dpgen.report import Run, save, show
from benchmarks.vs_dpgen.size import SIZES, Size
from dpstream.shared.atoms.frames import Batch
from dpstream.shared.spec import Spec

ARMS = ("dpgen", "lockstep", "streaming")
VENV = ".venv-dpgen"
WIDE = 140
"""Width of the tables when the output is not a terminal."""


def main() -> None:
    arguments = _parser().parse_args()
    size = next(size for size in SIZES if size.name == arguments.size)
    of_size: Path = arguments.workdir.resolve() / size.name
    folder = of_size / arguments.training
    venv: Path = (arguments.venv or arguments.workdir / VENV).resolve()
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    dpgen_arm.install(venv, version("pyscf"))
    cold = ablation.cold_starts(venv, dpgen_arm.environment(venv))
    console.print("cold start, s: " + ", ".join(f"{k} {v:.1f}" for k, v in cold.items()))
    outcomes: dict[str, list[Outcome]] = {arm: [] for arm in arguments.arms}
    for seed in range(1, arguments.seeds + 1):
        at = folder / f"seed-{seed}"
        inputs_.make_inputs(size, seed, at / "inputs")
        _check_labels_agree(console, at, venv)
        for arm in arguments.arms:
            console.print(f"seed {seed}: {arm}")
            spec = dpstream_spec.spec(size, _mode(arm), seed, arguments.training)
            run = partial(run_arm, arm, size, spec, at, venv)
            outcomes[arm].append(kept(at / f"{arm}.json", run))
    console.print(f"held-out set: {of_size / 'held-out'} (computed once)", soft_wrap=True)
    test = inputs_.held_out(size, of_size / "held-out")
    rms = {name: accuracy.rms_force(batch) for name, batch in test.items()}
    runs = {
        arm: [_measured(outcome, test, cold, folder) for outcome in own]
        for arm, own in outcomes.items()
    }
    save(folder / "results.json", size, runs, rms)
    show(console, size, runs, rms)
    console.print(f"results: {folder / 'results.json'}", soft_wrap=True)


def kept(path: Path, run: Callable[[], Outcome]) -> Outcome:
    """The outcome stored in `path`; if there is none, runs the arm and stores its outcome."""
    adapter = TypeAdapter(Outcome)
    if path.exists():
        return adapter.validate_json(path.read_bytes())
    outcome = run()
    path.write_bytes(adapter.dump_json(outcome))
    return outcome


def _measured(
    outcome: Outcome, test: Mapping[str, Batch], cold: Mapping[str, float], folder: Path
) -> Run:
    errors = accuracy.measure(outcome.models, test, folder / "scratch")
    return Run(outcome, errors, ablation.share(outcome, cold))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_dpgen", description=__doc__)
    names = [size.name for size in SIZES]
    parser.add_argument(
        "--size", choices=names, default="full", help="quick: a check that everything works"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/vs-dpgen"))
    parser.add_argument("--seeds", type=int, default=1, help="runs of every arm")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument(
        "--training",
        choices=get_args(dpstream_spec.Beginning),
        default="scratch",
        help="reuse: on both sides, all trainings but the first start from the previous models",
    )
    parser.add_argument("--venv", type=Path, help=f"DP-GEN's environment; default WORKDIR/{VENV}")
    return parser


def _check_labels_agree(console: Console, folder: Path, venv: Path) -> None:
    system, python = folder / "inputs" / "initial" / "C1H4-nopbc", venv / "bin" / "python"
    environment = dpgen_arm.environment(venv)
    difference = cross_check.check_labels(system, python, environment, folder / "cross-check")
    console.print(f"labels of DP-GEN and dpstream differ by {difference:.1g} eV/Å")


def _mode(arm: str) -> dpstream_spec.Mode:
    """The mode of the spec. DP-GEN's arm uses only the training section, so its mode is
    arbitrary."""
    return "lockstep" if arm == "lockstep" else "streaming"


def run_arm(arm: str, size: Size, spec: Spec, folder: Path, venv: Path) -> Outcome:
    """Runs one arm on the inputs that all arms of this seed share."""
    inputs = folder / "inputs"
    if arm == "dpgen":
        return dpgen_arm.run(size, spec.training, inputs, folder / arm, venv)
    return dpstream_arm.run(spec, inputs, folder / arm)


if __name__ == "__main__":
    main()
