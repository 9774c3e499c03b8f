"""What a trainer keeps warm between tasks: the child process that imports DeePMD-kit."""

from __future__ import annotations

from pathlib import Path

from dpstream.shared.runtime.child_process import ChildProcess

DATA_ONLY = frozenset({".pb", ".pt", ".hlo", ".zip"})
"""Given models that cannot run code of their own; `.zip` are checkpoints."""


MODELS = DATA_ONLY | {".pth"}


class TrainerResources:
    """The trainer's warm engine: a child process with DeePMD-kit loaded."""

    def __init__(self, scratch: Path, threads: int = 1, models: frozenset[str] = DATA_ONLY) -> None:
        """`scratch`: a private folder; `threads` of one training; `models`: endings of given models
        that trainings may begin from."""
        self.models = models
        self.engine = ChildProcess("dpstream.services.trainer.child", scratch / "deepmd", threads)

    def start(self) -> None:
        self.engine.start()

    def close(self) -> None:
        self.engine.kill()
