"""The trainer's child process for JAX, forked for every call.

LAMMPS cannot load JAX models, so that a member is converted to a TensorFlow model when it is
frozen. The conversion, the compression and the measured errors need TensorFlow. JAX starts threads
when it is imported, so that it is imported after the fork alone.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
from deepmd.backend.backend import Backend as DeepmdBackend

from dpstream.services.trainer.backends.evaluate import evaluate
from dpstream.services.trainer.backends.tensorflow import compress, same_bytes
from dpstream.services.trainer.training_input import Begin, jax_line
from dpstream.shared.runtime.child_process import TAIL, die_with_parent

FORK = True


def train(folder: str, how: Begin | None = None, model: str = "", given: bool = False) -> None:
    """As with TensorFlow, by a `dp` process of its own."""
    done = subprocess.run(
        jax_line(how, model, given),
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        preexec_fn=die_with_parent,
    )
    if done.returncode != 0:
        raise RuntimeError(f"dp train: {(done.stdout + done.stderr)[-TAIL:]}")


def freeze(folder: str, checkpoint: str, model: str) -> None:
    """Convert a JAX checkpoint to a TensorFlow model. DeePMD-kit 3.2.0 drops the energy per type
    (`out_bias`) in the conversion, so it is added to `bias_atom_e` of the fitting net."""
    os.chdir(folder)
    document = DeepmdBackend.detect_backend_by_model(checkpoint)().serialize_hook(checkpoint)
    variables = document["model"]["@variables"]
    fitting = document["model"]["fitting"]["@variables"]
    fitting["bias_atom_e"] = fitting["bias_atom_e"] + variables["out_bias"][0]
    variables["out_bias"] = np.zeros_like(variables["out_bias"])
    DeepmdBackend.detect_backend_by_model(model)().deserialize_hook(model, document)
    same_bytes(Path(model))


def describe() -> dict[str, str]:
    """Version of the backend and the device that it trains on."""
    import jax

    on_gpu = jax.devices()[0].platform == "gpu"
    return {
        "backend": f"jax {jax.__version__}",
        "device": "cuda:0" if on_gpu else "cpu",
        "runtime": "",
    }


OPERATIONS = {
    "train": train,
    "freeze": freeze,
    "compress": compress,
    "evaluate": evaluate,
    "describe": describe,
}
