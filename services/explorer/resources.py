"""Resources that an explorer keeps between tasks: its child process and downloaded models."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.explorer.batched.runner import BatchRunner
from dpstream.shared.atoms.deviation import force_deviation
from dpstream.shared.atoms.frames import Batch, Floats
from dpstream.shared.atoms.tensorflow_graph import check_model
from dpstream.shared.errors import Permanent, Temporary
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.device import Device
from dpstream.shared.runtime.gpu_check import check_gpu
from dpstream.shared.runtime.parser import Parser
from dpstream.shared.values import Committee, Ref

ENGINE = "dpstream.services.explorer.lammps.child"
PARSING = "dpstream.services.explorer.parsing"
GRAPH = ".pb"
DATA_ONLY = frozenset({GRAPH})
"""Suffixes of model files that cannot execute code, once the operations of their graph are
checked."""
KEPT_MODELS = 64
"""Maximum model files that a slot keeps on disk; it gives up the least recently used."""
KEPT_MANIFESTS = 16
"""Maximum manifests of committees that a slot keeps in memory."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Models evaluated on a batch: energies `(n_models, n_frames)` eV, forces `(n_models, n_frames,
    n_atoms, 3)` eV/Å, virials `(n_models, n_frames, 3, 3)` eV or None in vacuum."""

    energies: Floats
    forces: Floats
    virials: Floats | None


@dataclass(frozen=True)
class LoadedCommittee:
    """A committee with its models on disk, in the order of its members."""

    version: int
    models: tuple[Path, ...]
    type_map: tuple[str, ...]


class ModelFiles:
    """The model files of a process, one for each digest. Slots share them: trajectories fit in one
    batch if their models are the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._slots: Counter[str] = Counter()
        """Number of slots that keep a file, by its name."""
        self._lock = threading.Lock()

    def keep(self, name: str) -> None:
        with self._lock:
            self._slots[name] += 1

    def give_up(self, name: str) -> None:
        """Delete the file unless another slot keeps it."""
        with self._lock:
            self._slots[name] -= 1
            if not self._slots[name]:
                del self._slots[name]
                (self.folder / name).unlink(missing_ok=True)


class SharedResources:
    """What the slots of one process share: model files, and the batch of their trajectories.
    `found_on_gpu`: suffixes of models whose backend has been found to use the GPU."""

    def __init__(self, scratch: Path, threads: int = 1, device: Device | None = None) -> None:
        """As for `ExplorerResources`."""
        scratch = scratch.resolve()
        self.models = ModelFiles(scratch / "models")
        self.batch = BatchRunner(scratch / "batch", threads, device)
        self.found_on_gpu: set[str] = set()


@dataclass
class ExplorerResources:
    """`scratch`: a private folder that is kept between tasks; `formats`: suffixes of model files
    that this worker loads (`.pth` files can execute code); `trusting`: inputs for LAMMPS in
    campaigns are not restricted; `device`: what engines run on, None: what they choose;
    `shared`: what it has in common with other slots of the process, None: nothing. `warm`:
    start the child process before the first task; `gromacs`: its program."""

    scratch: Path
    threads: int = 1
    formats: frozenset[str] = DATA_ONLY
    trusting: bool = False
    device: Device | None = None
    shared: SharedResources | None = None
    warm: bool = True
    gromacs: str = "gmx"
    engine: ChildProcess = field(init=False)
    parser: Parser = field(init=False)
    """Of frames from outside; starts with the first."""
    batch: BatchRunner = field(init=False)
    _manifests: dict[str, Committee] = field(default_factory=dict)
    """The newest `KEPT_MANIFESTS`, by digest."""
    _checked: set[str] = field(default_factory=set)
    """Digests of models whose graph has been checked."""
    _kept: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Names of the model files that this slot keeps, the most recently used last."""

    def __post_init__(self) -> None:
        self.scratch = self.scratch.resolve()
        self.engine = ChildProcess(ENGINE, self.scratch / "engine", self.threads, self.device)
        self.parser = Parser(PARSING, self.scratch / "parser")
        shared = self.shared or SharedResources(self.scratch, self.threads, self.device)
        self._models, self.batch = shared.models, shared.batch
        self._found_on_gpu = shared.found_on_gpu

    def start(self) -> None:
        """Start the child process, which loads its libraries while the worker waits for a task.
        Raises SpecError if the worker loads PyTorch models and the GPU cannot evaluate them."""
        if not self.warm:
            return
        self.engine.start()
        if ".pth" in self.formats:
            check_gpu(self.engine, self.device)

    def close(self) -> None:
        self.engine.kill()
        self.parser.close()
        self.batch.close()
        self._keep_at_most(0)

    def committee(self, manifest: Ref, context: Context) -> LoadedCommittee:
        """The committee of a manifest in the store, downloaded if necessary."""
        return self.load(self.manifest(manifest, context), context)

    def manifest(self, ref: Ref, context: Context) -> Committee:
        """The manifest of a committee; read once, because most tasks name the same one."""
        if ref.sha256 not in self._manifests:
            self._manifests[ref.sha256] = Committee.model_validate_json(context.fetch(ref))
            while len(self._manifests) > KEPT_MANIFESTS:
                del self._manifests[next(iter(self._manifests))]
        return self._manifests[ref.sha256]

    def load(self, committee: Committee, context: Context) -> LoadedCommittee:
        models = tuple(self.model(ref, context) for ref in committee.models)
        return LoadedCommittee(committee.version, models, committee.type_map)

    def model(self, ref: Ref, context: Context) -> Path:
        """Path of a model, as a file named by its digest. Raises Permanent for a suffix that this
        worker does not load and for a graph that does more than compute, and as
        `_check_device`."""
        lacking = self.lacks(ref)
        if lacking is not None:
            raise Permanent(lacking)
        suffix = Path(ref.uri).suffix
        self._check_device(suffix, context)
        path = self._kept_file(f"{ref.sha256}{suffix}")
        if not path.exists():
            context.download(ref, path)
        if suffix == GRAPH and ref.sha256 not in self._checked:
            self._check_graph(ref, path)
        return path

    def lacks(self, model: Ref) -> str | None:
        """Why this worker does not load a model; None if it does."""
        if Path(model.uri).suffix in self.formats:
            return None
        allowed = ", ".join(sorted(self.formats))
        return f"{model.uri}: this worker's DPSTREAM_EXPLORER_MODELS allows {allowed}"

    def _check_graph(self, ref: Ref, path: Path) -> None:
        try:
            check_model(path.read_bytes())
        except ValueError as error:
            raise Permanent(f"{ref.uri}: {error}") from error
        self._checked.add(ref.sha256)

    def _check_device(self, suffix: str, context: Context) -> None:
        """Raises Temporary, for another machine, if the backend of models with this suffix cannot
        use the GPU that this worker's setting demands."""
        if self.device is None or not self.device.required or suffix in self._found_on_gpu:
            return
        if not self.call("finds_gpu", {"suffix": suffix}, context):
            raise Temporary(f"{suffix} models: DeePMD-kit cannot use {self.device}", delay=30.0)
        self._found_on_gpu.add(suffix)

    def call(self, operation: str, arguments: Mapping[str, Any], context: Context) -> Any:
        """Call the child process for a task, within the task's time limit and until it is
        stopped."""
        result = self.engine.call(
            operation,
            arguments,
            tick=context.check,
            seconds=context.command.max_seconds,
            progressed=context.progressed,
        )
        context.progressed()
        return result

    def evaluate(self, models: Sequence[Path], batch: Batch, context: Context) -> Evaluation:
        """Energies, forces and virials of every model on every frame."""
        arguments = {"models": [str(model) for model in models]}
        results = self._arrays("evaluate", arguments, batch, context)
        virials = None if batch.cells is None else results["virials"]
        return Evaluation(results["energies"], results["forces"], virials)

    def descriptors(
        self, committee: Ref, batch: Batch, context: Context, relative: float | None = None
    ) -> tuple[Sequence[Floats], Sequence[Floats]]:
        """Per frame of `batch`: descriptors `(n_atoms, n_features)` by member 0, and the
        committee's `force_deviation` of each atom `(n_atoms,)`."""
        models = self.committee(committee, context).models
        results = self._arrays("descriptors", {"model": str(models[0])}, batch, context)
        forces = self.evaluate(models, batch, context).forces
        return list(results["descriptors"]), list(force_deviation(forces, relative))

    def cutoff(self, model: Path, context: Context) -> float:
        return float(self.call("cutoff", {"model": str(model)}, context))

    def _arrays(
        self, operation: str, arguments: Mapping[str, Any], batch: Batch, context: Context
    ) -> dict[str, Floats]:
        folder = context.scratch.resolve()
        input_file, result = folder / "batch.npz", folder / "result.npz"
        input_file.write_bytes(batch.dumps())
        files = {"batch": str(input_file), "result": str(result)}
        self.call(operation, {**arguments, **files}, context)
        with np.load(result, allow_pickle=False) as archive:
            return dict(archive)

    def _kept_file(self, name: str) -> Path:
        """Path of a model file, which exists if a slot of the process has downloaded it. It stays
        until this slot has used `KEPT_MODELS` others."""
        if name not in self._kept:
            self._models.keep(name)
        self._kept[name] = None
        self._kept.move_to_end(name)
        self._keep_at_most(KEPT_MODELS)
        return self._models.folder / name

    def _keep_at_most(self, count: int) -> None:
        while len(self._kept) > count:
            name, _ = self._kept.popitem(last=False)
            self._models.give_up(name)
