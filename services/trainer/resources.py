"""Resources that a trainer keeps between tasks: the child process with DeePMD-kit loaded."""

from __future__ import annotations

from pathlib import Path

from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import Device

DATA_ONLY = frozenset({".pb", ".pt", ".hlo", ".zip"})
"""Suffixes of models that cannot execute code; `.zip` are checkpoints."""


MODELS = DATA_ONLY | {".pth"}


class TrainerResources:
    """The trainer's child process with DeePMD-kit loaded."""

    def __init__(
        self,
        scratch: Path,
        threads: int = 1,
        models: frozenset[str] = DATA_ONLY,
        device: Device | None = None,
    ) -> None:
        """`scratch`: a private folder; `threads` per training; `models`: suffixes of users' models
        from which trainings may start; `device`: what trainings run on, None: what DeePMD-kit
        chooses."""
        self.models, self.device = models, device
        module = "dpstream.services.trainer.child"
        self.engine = ChildProcess(module, scratch / "deepmd", threads, device)
        self.described: dict[str, dict[str, str]] = {}
        """What the engine reports of itself, by backend."""

    def start(self) -> None:
        self.engine.start()

    def close(self) -> None:
        self.engine.kill()
