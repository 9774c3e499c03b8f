"""Molecular dynamics of many trajectories in one batch, by TorchSim: the engine `batched`.

Every trajectory remains a task of its own. Those that a worker process runs at the same time share
one child process, which integrates them together.
"""

from __future__ import annotations

import importlib.util
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np

from dpstream.services.explorer.batched.replica import (
    DISTRIBUTION,
    Terms,
    has_barostats,
    initial_state,
)
from dpstream.services.explorer.engines.base import TrajectoryRequest, TrajectorySegment
from dpstream.services.explorer.lammps.script import check_start
from dpstream.shared.atoms.frames import Batch, Frame, canonical
from dpstream.shared.spec import Md

ENSEMBLES = ("nve", "nvt", "npt-iso", "npt-aniso")
LIBRARY = "torch_sim"
INSTALL = "pip install torch-sim-atomistic"
SUFFIX = ".pth"


class BatchedDynamics:
    def __init__(self, request: TrajectoryRequest) -> None:
        self.request = request
        self.name = uuid.uuid4().hex
        weakref.finalize(self, request.resources.batch.end, self.name).atexit = False

    # -------------------------------------------------------------------------- the protocol

    def start(self) -> None:
        request = self.request
        check_dynamics(request.md, request.frame)
        check_worker(request)
        seed, temperature = request.command.seed, request.command.condition.temperature
        self._put(initial_state(request.frame, request.md, temperature, seed).dumps())

    def resume(self, state: bytes) -> None:
        check_worker(self.request)
        self._put(state)

    def advance(self, checks: int, streak: int) -> TrajectorySegment:
        path = self.request.folder / "frames.npz"
        outcome = self._call("advance", checks=checks, streak=streak, frames=str(path))
        frames = self._frames() if outcome["made"] else None
        return TrajectorySegment(outcome["made"], outcome["streak"], outcome["stopped"], frames)

    def switch_committee(self) -> None:
        self._call("change", terms=self._terms())

    def save(self) -> bytes:
        path = self.request.folder / "saved.npz"
        self._call("save", state=str(path))
        return path.read_bytes()

    # ------------------------------------------------------------------------------- internals

    def _put(self, state: bytes) -> None:
        path = self.request.folder / "replica.npz"
        path.write_bytes(state)
        self._call("put", terms=self._terms(), state=str(path))

    def _call(self, operation: str, **arguments: Any) -> Any:
        batch, context = self.request.resources.batch, self.request.context
        return batch.call(operation, self.name, arguments, context)

    def _terms(self) -> Mapping[str, Any]:
        request, command = self.request, self.request.command
        terms = Terms.under(
            request.md,
            command.condition,
            request.frame,
            models=tuple(map(str, request.committee.models)),
            driver=command.driver,
            trust=command.trust.model_dump(),
            pinned=command.pinned,
            seed=command.seed,
        )
        return vars(terms)

    def _frames(self) -> Batch:
        """The frames of the last segment."""
        with np.load(self.request.folder / "frames.npz", allow_pickle=False) as found:
            start = self.request.frame
            cells = [None if start.cell is None else cell for cell in found["cells"]]
            places = zip(found["positions"], cells, strict=True)
            moved = [replace(start, positions=r, cell=cell) for r, cell in places]
            return Batch.of(
                [canonical(frame).frame for frame in moved],
                devi_f=found["devi_f"],
                devi_v=found["devi_v"],
                time_ps=found["steps"] * self.request.md.timestep,
            )


def check_dynamics(md: Md, frame: Frame) -> None:
    """Raises ValueError for dynamics that this engine does not have."""
    check_start(frame, md)
    if md.ensemble == "npt-tri":
        raise ValueError(
            "batched: does not support npt-tri, because the triclinic barostat of TorchSim 0.6.2 "
            f"shears the cell otherwise than the atoms; supported: {', '.join(ENSEMBLES)}; use "
            "engine md for npt-tri"
        )


def lacking_barostat(md: Md) -> str | None:
    """Why this machine's TorchSim cannot run the ensemble, or None."""
    if not md.ensemble.startswith("npt") or has_barostats():
        return None
    return (
        f"batched: {md.ensemble} needs TorchSim 0.6, which needs Python 3.12; the barostats of "
        f"TorchSim {metadata.version(DISTRIBUTION)} are wrong; use engine md for {md.ensemble}"
    )


def lacking_here(md: Md) -> str | None:
    """What this machine lacks to integrate: TorchSim or a sound barostat; None: nothing."""
    if importlib.util.find_spec(LIBRARY) is None:
        return f"batched: this worker lacks TorchSim; {INSTALL}"
    return lacking_barostat(md)


def check_worker(request: TrajectoryRequest) -> None:
    """Raises ValueError if this worker lacks TorchSim or a sound barostat, or the models are not
    PyTorch's."""
    lacking = lacking_here(request.md)
    if lacking is not None:
        raise ValueError(lacking)
    if any(model.suffix != SUFFIX for model in request.committee.models):
        raise ValueError(f"batched: needs {SUFFIX} models; set training.backend: pytorch")
