"""Resources that a trainer keeps between tasks: the child processes with DeePMD-kit loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dpstream.services.trainer.training_input import BACKENDS
from dpstream.shared.errors import Permanent
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import Device
from dpstream.shared.runtime.gpu_check import check_gpu

DATA_ONLY = frozenset({".pb", ".pt", ".hlo", ".zip"})
"""Suffixes of models that cannot execute code; `.zip` are checkpoints."""


MODELS = DATA_ONLY | {".pth"}
RENEW_AFTER = 500
"""Calls after which a child process is renewed. PyTorch's grows by some 5 MB per member, which
takes four to six calls."""


class TrainerResources:
    """The trainer's child processes, one per backend. At most one is alive, because each occupies
    memory of the machine and of the GPU."""

    def __init__(
        self,
        scratch: Path,
        threads: int = 1,
        models: frozenset[str] = DATA_ONLY,
        device: Device | None = None,
        checks_gpu: bool = True,
    ) -> None:
        """`scratch`: a private folder; `threads` per training; `models`: suffixes of users' models
        from which trainings may start; `device`: what trainings run on, None: what DeePMD-kit
        chooses; `checks_gpu`: whether `start` waits until PyTorch has used the GPU."""
        self.models, self.device, self.checks_gpu = models, device, checks_gpu
        self._engines = {
            name: ChildProcess(
                f"dpstream.services.trainer.backends.{name}",
                scratch / name,
                threads,
                device,
                renew_after=RENEW_AFTER,
                links=True,  # DeePMD-kit's name of the last checkpoint
            )
            for name in BACKENDS
        }
        self.described: dict[str, dict[str, str]] = {}
        """What the child processes report of themselves, by backend."""

    def lacks(self, backend: str) -> str | None:
        """What is not installed for a backend; None if nothing is missing."""
        chosen = BACKENDS[backend]
        if _is_installed(chosen.package):
            return None
        needs = f"backend {backend} needs the package {chosen.package}"
        return f"{needs}: pip install '{chosen.install}'"

    def engine(self, backend: str) -> ChildProcess:
        """The child process of a backend, after ending that of another. Raises Permanent if the
        backend is not installed."""
        lacking = self.lacks(backend)
        if lacking is not None:
            raise Permanent(lacking)
        for name, engine in self._engines.items():
            if name != backend:
                engine.kill()
        return self._engines[backend]

    def start(self) -> None:
        """Start the child process of the first backend that is installed, so that it can import its
        libraries while the worker waits for a task. Raises SpecError if PyTorch cannot use the
        GPU."""
        for name, backend in BACKENDS.items():
            if _is_installed(backend.package):
                self.engine(name).start()
                if name == "pytorch" and self.checks_gpu:
                    check_gpu(self.engine(name), self.device)
                return

    def close(self) -> None:
        for engine in self._engines.values():
            engine.kill()


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None
