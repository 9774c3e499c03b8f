"""The trainer's child process: DeePMD-kit, imported once and forked for every call.

TensorFlow never releases its graph and memory. A fork of a child that has imported it starts clean
without importing it again; no TensorFlow session may run before the fork.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from deepmd.backend.backend import Backend as DeepmdBackend
from deepmd.tf.entrypoints.compress import compress as tf_compress
from deepmd.tf.entrypoints.freeze import freeze as tf_freeze
from deepmd.tf.entrypoints.train import train as tf_train
from deepmd.tf.env import tf

from dpstream.services.trainer.training_input import (
    BACKENDS,
    INPUT,
    RESOLVED,
    SCRIPTED,
    Backend,
    Begin,
    compress_line,
    freeze_line,
    train_line,
)
from dpstream.shared.atoms.frames import PARAMETERS
from dpstream.shared.runtime.child_process import TAIL, die_with_parent

FORK = True
EVALUATE_ATOMS = 2048
"""Atoms evaluated at once: enough for vectorisation, with little memory."""


class MissingBackend(RuntimeError):
    """The Python package of a DeePMD-kit backend is not installed."""


def train(
    folder: str, backend: str, how: Begin | None = None, model: str = "", given: bool = False
) -> None:
    """Train in `folder` by its `input.json`, from scratch or, as `how` says, from `model`: the
    prefix of a checkpoint or a frozen model, relative to the folder, `given` by the user or made by
    dpstream."""
    chosen = _enter(folder, backend)
    if backend != "tensorflow":
        _dp(train_line(chosen, how, model, given))
        return
    start = {way: model if way == how else None for way in get_args(Begin)}
    tf_train(
        INPUT=INPUT,
        output=RESOLVED,
        restart=start["restart"],
        init_model=start["init-model"],
        init_frz_model=start["init-frz-model"],
        finetune=start["finetune"],
        use_pretrain_script=given and how in SCRIPTED,
        mpi_log="master",
        log_level=logging.WARNING,
        log_path=None,
    )


def describe(backend: str) -> dict[str, str]:
    """The `backend` with its version, the `device` that it uses, *cpu* or *cuda:0*, and the CUDA
    `runtime` that it was built for."""
    _require(BACKENDS[backend], backend)
    if backend == "tensorflow":
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        version, runtime = tf.__version__, tf.sysconfig.get_build_info().get("cuda_version", "")
    elif backend == "pytorch":
        import torch

        on_gpu, version, runtime = torch.cuda.is_available(), torch.__version__, torch.version.cuda
    else:
        import jax

        on_gpu, version, runtime = jax.default_backend() == "gpu", jax.__version__, ""
    return {
        "backend": f"{backend} {version}",
        "device": "cuda:0" if on_gpu else "cpu",
        "runtime": runtime or "",
    }


def freeze(folder: str, backend: str, checkpoint: str, model: str) -> None:
    """Freeze `checkpoint` of `folder` into the model file `model`."""
    chosen = _enter(folder, backend)
    if backend == "pytorch":
        _dp(freeze_line(chosen, checkpoint, model))
        return
    if backend == "jax":
        _convert(checkpoint, model)
    else:
        tf_freeze(checkpoint_folder=checkpoint, output=model, node_names=None)
    _same_bytes(Path(model))


def compress(folder: str, backend: str, frozen: str, model: str) -> None:
    """Tabulate the embedding nets of `frozen` (D. Lu et al., J. Chem. Theory Comput. 2022, 18,
    5559) into `model`. Raises DeePMD-kit's exception if the descriptor does not support it."""
    chosen = _enter(folder, backend)
    if backend == "pytorch":
        _dp(compress_line(chosen, frozen, model))
        return
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
    _same_bytes(Path(model))


def _convert(checkpoint: str, model: str) -> None:
    """Convert a JAX checkpoint to a TensorFlow model. DeePMD-kit 3.2.0 drops the energy per type
    (`out_bias`) in the conversion, so it is added to `bias_atom_e` of the fitting net."""
    document = DeepmdBackend.detect_backend_by_model(checkpoint)().serialize_hook(checkpoint)
    variables = document["model"]["@variables"]
    fitting = document["model"]["fitting"]["@variables"]
    fitting["bias_atom_e"] = fitting["bias_atom_e"] + variables["out_bias"][0]
    variables["out_bias"] = np.zeros_like(variables["out_bias"])
    DeepmdBackend.detect_backend_by_model(model)().deserialize_hook(model, document)


def _same_bytes(model: Path) -> None:
    """Serialise a TensorFlow model deterministically, so that equal models have equal bytes:
    protobuf writes map entries in varying order by default."""
    graph = tf.GraphDef.FromString(model.read_bytes())
    model.write_bytes(graph.SerializeToString(deterministic=True))


def evaluate(model: str, systems: Sequence[str]) -> dict[str, Any]:
    """Root mean square errors of `model` over DeePMD-kit systems, every frame of all of them:
    energy per atom (eV), force component (eV/Å), virial component per atom (eV; None where no
    system has virials), and the labels' own RMS force component (eV/Å) as `rms_force`."""
    from deepmd.infer import DeepPot

    potential = DeepPot(model, auto_batch_size=False)
    sums = _Sums()
    for system in systems:
        _evaluate_system(potential, Path(system), sums)
    return sums.result()


class _Sums:
    """Sums and counts of squares, by quantity."""

    def __init__(self) -> None:
        self.frames = 0
        self._squares: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, values: npt.NDArray[np.float64]) -> None:
        self._squares[name] = self._squares.get(name, 0.0) + float(np.sum(values**2))
        self._counts[name] = self._counts.get(name, 0) + values.size

    def result(self) -> dict[str, Any]:
        names = ("energy", "force", "virial", "rms_force")
        means = {name: self._root(name) for name in names}
        return {"frames": self.frames, **means}

    def _root(self, name: str) -> float | None:
        if name not in self._counts:
            return None
        return float(np.sqrt(self._squares[name] / self._counts[name]))


def _evaluate_system(potential: Any, system: Path, sums: _Sums) -> None:
    data = {p.stem: np.load(p) for p in sorted((system / "set.000").glob("*.npy"))}
    names = (system / "type_map.raw").read_text().split()
    type_map = potential.get_type_map()
    words = (system / "type.raw").read_text().split()
    types = [type_map.index(names[int(word)]) for word in words]
    atoms, frames = len(types), len(data["energy"])
    box = None if (system / "nopbc").exists() else data["box"]
    stride = max(1, EVALUATE_ATOMS // atoms)
    for begin in range(0, frames, stride):
        rows = slice(begin, begin + stride)
        coeff = data["atom_ener_coeff"][rows] if "atom_ener_coeff" in data else None
        energy, force, virial, *atomic = potential.eval(
            data["coord"][rows],
            None if box is None else box[rows],
            types,
            atomic=coeff is not None,
            **{name: data[name][rows] for name in PARAMETERS if name in data},
        )
        if coeff is not None:
            energy = np.sum(coeff * atomic[0].reshape(coeff.shape), axis=1)
        wanted = data["force"][rows]
        sums.add("energy", (energy.reshape(-1) - data["energy"][rows]) / atoms)
        sums.add("force", force.reshape(wanted.shape) - wanted)
        sums.add("rms_force", wanted)
        if "virial" in data:
            sums.add("virial", (virial.reshape(-1, 9) - data["virial"][rows]) / atoms)
    sums.frames += frames


def _enter(folder: str, backend: str) -> Backend:
    chosen = BACKENDS[backend]
    _require(chosen, backend)
    os.chdir(folder)  # this process is a fork and does nothing else afterwards
    return chosen


def _require(chosen: Backend, backend: str) -> None:
    if importlib.util.find_spec(chosen.package) is None:
        raise MissingBackend(
            f"backend {backend} needs the package {chosen.package}: pip install '{chosen.install}'"
        )


def _dp(line: Sequence[str]) -> None:
    done = subprocess.run(
        line, check=False, capture_output=True, text=True, preexec_fn=die_with_parent
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(line[4:6])}: {(done.stdout + done.stderr)[-TAIL:]}")


OPERATIONS = {
    "train": train,
    "freeze": freeze,
    "compress": compress,
    "evaluate": evaluate,
    "describe": describe,
}
