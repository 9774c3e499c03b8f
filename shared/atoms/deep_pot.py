"""Loads DeePMD-kit models to evaluate many frames at once, whatever backend made them."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from deepmd.infer import DeepPot

NEIGHBOUR_LIST = "native"
"""Of a PyTorch model. DeePMD-kit prefers vesin where it is installed, which lists the neighbours
of one frame after another in Python; its native list covers all frames of a batch at once."""
ATOMS_ON_CPU = 2048
"""Atoms evaluated at once: enough for vectorisation, with little memory."""
ATOMS_ON_GPU = 65536
"""Halved whenever the memory of the GPU does not suffice."""
PYTORCH = (".pth", ".pt")


class DeepPotential:
    """A model file, evaluated in batches as large as the device takes."""

    def __init__(self, path: str) -> None:
        self._model = DeepPot(path, auto_batch_size=ATOMS_ON_CPU, nlist_backend=NEIGHBOUR_LIST)
        self._is_script = path.endswith(PYTORCH)
        _limit_batches(self._model.deep_eval.auto_batch_size)

    @property
    def type_map(self) -> list[str]:
        return list(self._model.get_type_map())

    @property
    def cutoff(self) -> float:
        """Å"""
        return float(self._model.get_rcut())

    def eval(self, *arguments: Any, **options: Any) -> Any:
        """As `DeepPot.eval`: coordinates `(n, 3 × n_atoms)` Å, cells `(n, 9)` Å or None, types;
        energies `(n, 1)` eV, forces `(n, n_atoms, 3)` eV/Å, virials `(n, 9)` eV, and more."""
        with self._unspecialised():
            return self._model.eval(*arguments, **options)

    def eval_descriptor(self, *arguments: Any, **options: Any) -> Any:
        with self._unspecialised():
            return self._model.eval_descriptor(*arguments, **options)

    def _unspecialised(self) -> AbstractContextManager[None]:
        """TorchScript would compile its first calls for the shapes that they see, which takes
        seconds per call."""
        if not self._is_script:
            return nullcontext()
        import torch

        unspecialised: AbstractContextManager[None] = torch.jit.optimized_execution(False)
        return unspecialised


def _limit_batches(sizes: Any) -> None:
    """Let DeePMD-kit begin with the largest batch instead of doubling a small one, whose every size
    costs a slow first call, and never exceed it: other processes use the GPU as well."""
    chosen = "DP_INFER_BATCH_SIZE" in os.environ
    if not chosen and os.environ.get("DEVICE") != "cpu" and sizes.is_gpu_available():
        sizes.current_batch_size = sizes.maximum_working_batch_size = ATOMS_ON_GPU
    sizes.minimal_not_working_batch_size = sizes.current_batch_size + 1
