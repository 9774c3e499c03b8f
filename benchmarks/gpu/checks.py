"""`--check`: what can only fail on a GPU, in a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dpstream.services.explorer.resources import ENGINE as LAMMPS
from dpstream.services.trainer.resources import TrainerResources
from dpstream.shared.errors import DpstreamError
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import chosen, cudart_folder, gpus


def run(folder: Path) -> int:
    """Prints one line per check; returns the number of those that failed."""
    failed = 0
    for name, check in _checks(folder):
        try:
            print(f"ok      {name}: {check()}")
        except (DpstreamError, AssertionError, OSError) as error:
            failed += 1
            print(f"FAILED  {name}: {' '.join(str(error).split())}")
    return failed


def _checks(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    device = chosen("auto")
    resources = TrainerResources(folder / "trainer", device=device)
    trainer = resources.engine("pytorch")
    judge = ChildProcess(LAMMPS, folder / "explorer", device=device)
    try:
        yield "GPUs", lambda: ", ".join(map(str, gpus())) or "none: the CPU stands in"
        yield "libcudart.so.12", lambda: cudart_folder() or "not installed"
        yield "TensorFlow is not needed", _without_tensorflow
        yield "a trainer's backend", lambda: trainer.call("describe", {})
        yield "a compressed model in the trainer", lambda: _evaluates_compressed(trainer)
        yield "a compressed model in the explorer", lambda: _evaluates_compressed(judge)
    finally:
        resources.close()
        judge.kill()


def _evaluates_compressed(engine: ChildProcess) -> str:
    return f"evaluated on {engine.call('check', {'folder': str(engine.scratch)})}"


def _without_tensorflow() -> str:
    assert "tensorflow" not in sys.modules
    return "not imported"
