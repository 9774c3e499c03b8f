"""The trainer's child process for TensorFlow: imported once and forked for every call.

TensorFlow never releases its graph and memory. A fork of a child that has imported it starts clean
without importing it again; no TensorFlow session may run before the fork.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from dpstream.services.trainer.backends.evaluate import evaluate
from dpstream.services.trainer.training_input import INPUT, RESOLVED, Begin, starting_options
from dpstream.shared.atoms.without_keras import without_keras

with without_keras():
    import tensorflow
    from deepmd.tf.entrypoints.compress import compress as tf_compress
    from deepmd.tf.entrypoints.freeze import freeze as tf_freeze
    from deepmd.tf.entrypoints.train import train as tf_train
    from deepmd.tf.env import tf

FORK = True


def train(folder: str, how: Begin | None = None, model: str = "", given: bool = False) -> None:
    """Train in `folder` by its `input.json`, from scratch or, as `how` says, from `model`: the
    prefix of a checkpoint or a frozen model, relative to the folder, `given` by the user or made by
    dpstream."""
    os.chdir(folder)  # this process is a fork and does nothing else afterwards
    tf_train(
        INPUT=INPUT,
        output=RESOLVED,
        **starting_options(how, model, given),
        mpi_log="master",
        log_level=logging.WARNING,
        log_path=None,
    )


def freeze(folder: str, checkpoint: str, model: str) -> None:
    """Freeze `checkpoint` of `folder` into the model file `model`."""
    os.chdir(folder)
    tf_freeze(checkpoint_folder=checkpoint, output=model, node_names=None)
    same_bytes(Path(model))


def compress(folder: str, frozen: str, model: str) -> None:
    """Tabulate the embedding nets of `frozen` (D. Lu et al., J. Chem. Theory Comput. 2022, 18,
    5559) into `model`. Raises DeePMD-kit's exception if the descriptor does not support it."""
    os.chdir(folder)
    tf.reset_default_graph()
    tf_compress(
        input=frozen,
        output=model,
        extrapolate=5,
        step=0.01,
        frequency="-1",
        checkpoint_folder="model-compression",
        training_script=RESOLVED,  # a converted model lacks the shortest distance of its data
        mpi_log="master",
        log_level=logging.WARNING,
        log_path=None,
    )
    same_bytes(Path(model))


def same_bytes(model: Path) -> None:
    """Serialise a TensorFlow model deterministically, so that equal models have equal bytes:
    protobuf writes map entries in varying order by default."""
    graph = tf.GraphDef.FromString(model.read_bytes())
    model.write_bytes(graph.SerializeToString(deterministic=True))


def describe() -> dict[str, str]:
    """Version of the backend, the device that it computes on, and that device's CUDA runtime."""
    on_gpu = bool(tensorflow.config.list_physical_devices("GPU"))
    runtime = tensorflow.sysconfig.get_build_info().get("cuda_version", "") if on_gpu else ""
    return {
        "backend": f"tensorflow {tensorflow.__version__}",
        "device": "cuda:0" if on_gpu else "cpu",
        "runtime": runtime,
    }


OPERATIONS = {
    "train": train,
    "freeze": freeze,
    "compress": compress,
    "evaluate": evaluate,
    "describe": describe,
}
