"""Molecular dynamics with LAMMPS, driven by a member of the committee: the engine `md`.

Also the base class of the other engines that use LAMMPS: they override `amended`, `pair`, `judges`
or `files`.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.explorer.engines.base import TrajectoryRequest, TrajectorySegment
from dpstream.services.explorer.lammps import script as md_script
from dpstream.shared.atoms.frames import Batch, Frame, canonical


class MolecularDynamics:
    restart = "restart"
    """Name of the restart file."""

    def __init__(self, request: TrajectoryRequest) -> None:
        self.request = request

    # -------------------------------------------------------------- overridden by other engines

    def amended(self, script: md_script.Script) -> md_script.Script:
        """The script of plain dynamics with the additions of this engine."""
        return script

    def pair(self) -> list[str]:
        """The commands of the pair style, which computes the forces."""
        return self.pair_of(self.request.committee.models, self.request.command.driver)

    def judges(self) -> Sequence[Path]:
        """Models evaluated at each check, if the pair style does not report deviations."""
        return ()

    def files(self) -> Sequence[Path]:
        """Files that `resume` needs in addition to the restart file; valid between runs of
        LAMMPS."""
        return ()

    def pair_of(self, models: Sequence[Path], driver: int) -> list[str]:
        """The commands of the pair style of these models."""
        request, type_map = self.request, self.request.committee.type_map
        every, trust = request.md.every, request.command.trust
        return md_script.pair_commands(models, driver, type_map, every, trust, request.frame)

    # -------------------------------------------------------------------------- the protocol

    def start(self) -> None:
        self._call("begin", script=vars(self.first()))

    def resume(self, state: bytes) -> None:
        unpacked(state, self.saved)
        self._call("resume", script=vars(self.following()))

    def first(self) -> md_script.Script:
        """The script that starts from the frame of the request."""
        request = self.request
        data = request.folder / "start.data"
        type_map = request.committee.type_map
        data.write_text(md_script.data_file(request.frame, type_map, request.md.masses))
        condition, seed = request.command.condition, request.command.seed
        pair = self.pair()
        script = md_script.start_script(request.frame, data, request.md, condition, seed, pair)
        return self.amended(script)

    def following(self) -> md_script.Script:
        """The script that starts from the restart file."""
        request = self.request
        restart = self.saved / self.restart
        condition = request.command.condition
        pair = self.pair()
        script = md_script.resume_script(request.frame, restart, request.md, condition, pair)
        return self.amended(script)

    def advance(self, checks: int, streak: int) -> TrajectorySegment:
        request = self.request
        outcome = self._call(
            "advance",
            checks=checks,
            every=request.md.every,
            overlap=request.md.overlap,
            reach=self.reach,
            trust=request.command.trust.model_dump(),
            streak=streak,
            stop_after=request.md.stop_after,
            frames=str(request.folder / "frames.npz"),
            judges=[str(model) for model in self.judges()],
            type_map=request.committee.type_map,
            parameters={name: v.tolist() for name, v in request.frame.parameters.items()},
        )
        frames = self._frames() if outcome["made"] else None
        return TrajectorySegment(outcome["made"], outcome["streak"], outcome["stopped"], frames)

    def switch_committee(self) -> None:
        header = md_script.header(self.request.vacuum)
        self._call("change", header=header, pair=self.pair())

    def save(self) -> bytes:
        self.saved.mkdir(exist_ok=True)
        self._call("write_restart", path=str(self.saved / self.restart))
        for path in self.files():
            shutil.copy(path, self.saved)
        return packed(self.saved)

    # ------------------------------------------------------------------------------- internals

    @property
    def saved(self) -> Path:
        """The folder with the files of `save`."""
        return self.request.folder / "saved"

    def _call(self, operation: str, **arguments: Any) -> Any:
        return self.request.resources.call(operation, arguments, self.request.context)

    @cached_property
    def reach(self) -> float | None:
        """The models' cutoff in Å for a molecule in vacuum, else None."""
        request = self.request
        if not request.vacuum:
            return None
        return request.resources.cutoff(request.committee.models[0], request.context)

    def _frames(self) -> Batch:
        """The frames of the last segment. Atoms may have swapped elements; canonical order restores
        the order of the elements."""
        with np.load(self.request.folder / "frames.npz", allow_pickle=False) as found:
            rows = zip(found["positions"], found["cells"], found["types"], strict=True)
            return Batch.of(
                [self._frame(*row) for row in rows],
                devi_f=found["devi_f"],
                devi_v=found["devi_v"],
                time_ps=found["steps"] * self.request.md.timestep,
            )

    def _frame(self, positions: Any, cell: Any, types: Any) -> Frame:
        species = tuple(self.request.committee.type_map[number - 1] for number in types)
        cell = None if self.request.vacuum else cell
        moved = replace(self.request.frame, species=species, positions=positions, cell=cell)
        return canonical(moved).frame


def packed(folder: Path) -> bytes:
    """The files of a folder as an `.npz` archive."""
    out = io.BytesIO()
    files: Any = {
        path.name: np.frombuffer(path.read_bytes(), dtype=np.uint8) for path in folder.iterdir()
    }
    np.savez(out, **files)
    return out.getvalue()


def unpacked(data: bytes, folder: Path) -> None:
    """The inverse of `packed`."""
    folder.mkdir(exist_ok=True)
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        for name in archive.files:
            (folder / Path(name).name).write_bytes(archive[name].tobytes())
