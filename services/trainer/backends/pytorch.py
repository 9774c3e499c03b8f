"""The trainer's child process for PyTorch: one process and one CUDA context for all its calls.

A fork cannot use CUDA once its parent has, and importing torch takes longer than many trainings,
so that nothing is forked and no `dp` process is started. Every call begins in the state of a new
process, so that a member does not depend on what was trained before it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from deepmd.pt.entrypoints import main as dp
from deepmd.pt.entrypoints.compress import enable_compression
from deepmd.pt.utils import env

from dpstream.services.trainer.backends import evaluate as errors
from dpstream.services.trainer.backends import resident_frames
from dpstream.services.trainer.training_input import INPUT, RESOLVED, Begin, starting_options
from dpstream.shared.atoms.tiny_model import evaluate_tiny_model

RANDOM_STATE = torch.get_rng_state()
resident_frames.install()


@contextmanager
def _as_in_a_new_process(folder: str) -> Iterator[None]:
    """Work in `folder`, and release the memory afterwards."""
    own = os.getcwd()
    torch.set_rng_state(RANDOM_STATE)
    env.CUSTOM_OP_USE_JIT = False  # set by each training, wrong for freezing
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(own)
        gc.collect()
        if env.DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def train(
    folder: str,
    how: Begin | None = None,
    model: str = "",
    given: bool = False,
    branch: str = "",
) -> None:
    """As with TensorFlow; `branch`: the head of a multitask model."""
    with _as_in_a_new_process(folder):
        dp.train(
            input_file=INPUT,
            output=RESOLVED,
            model_branch=branch,
            **starting_options(how, model, given),
        )


def freeze(folder: str, checkpoint: str, model: str) -> None:
    """Freeze `checkpoint` of `folder` into the model file `model`."""
    with _as_in_a_new_process(folder):
        dp.freeze(model=checkpoint, output=model)


def compress(folder: str, frozen: str, model: str) -> None:
    """As with TensorFlow."""
    with _as_in_a_new_process(folder):
        enable_compression(input_file=frozen, output=model)


def evaluate(model: str, systems: Sequence[str]) -> dict[str, Any]:
    """As with TensorFlow."""
    with _as_in_a_new_process(os.getcwd()):
        return errors.evaluate(model, systems)


def describe() -> dict[str, str]:
    """Version of the backend, the device that it computes on, and that device's CUDA runtime."""
    on_gpu = env.DEVICE.type == "cuda"
    return {
        "backend": f"pytorch {torch.__version__.partition('+')[0]}",
        "device": str(env.DEVICE),
        "runtime": (torch.version.cuda or "") if on_gpu else "",
    }


OPERATIONS = {
    "train": train,
    "freeze": freeze,
    "compress": compress,
    "evaluate": evaluate,
    "describe": describe,
    "check": evaluate_tiny_model,
}
