"""CP2K and pw.x are stopped with their worker in the SCF; another worker continues."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ase.build import bulk, molecule

from dpstream.services.labeler.handlers import label
from dpstream.services.labeler.recipes import make_recipe, read_files
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.labeler.restarts import Restart, pack
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import (
    Batch,
    Frame,
    FrameLabel,
    canonical,
    decode_labelled,
    frame_key,
    from_ase,
)
from dpstream.shared.codec import decode
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.values import FrameRef, Ref, campaign_uri
from tests.support.programs.labeling_programs import point, require
from tests.support.workers.worker import WorkerHarness, workers

assert workers

ITERATION = r"^ +\d+ (?:OT|Broy|P_Mix|NoMix|DIIS)|^ +iteration #"
"""Line of an SCF iteration in the output of either program."""
STOP_AT = 4
SECONDS = 120.0
"""Time limit of a program on a busy machine."""


def iterations(folder: Path) -> int:
    """SCF iterations in the newest output below `folder`."""
    texts = sorted(folder.rglob("stdout"), key=lambda path: path.stat().st_mtime)
    return len(re.findall(ITERATION, texts[-1].read_text(), re.MULTILINE)) if texts else 0


def program_at_work(scratch: Path) -> psutil.Process:
    """The labeling program that runs below `scratch`, as soon as it is in the middle of its SCF."""
    deadline = time.monotonic() + SECONDS
    while iterations(scratch) < STOP_AT and time.monotonic() < deadline:
        time.sleep(0.01)
    (program,) = (each for each in psutil.Process().children() if _works_in(each, scratch))
    return program


def _works_in(process: psutil.Process, folder: Path) -> bool:
    with suppress(psutil.ZombieProcess):  # another child has just ended
        return Path(process.cwd()).is_relative_to(folder)
    return False


End = Callable[[Context, psutil.Process], None]


def stopped(context: Context, program: psutil.Process) -> None:
    """The worker is stopped. The program waits for that: on a busy machine it might end before."""
    program.suspend()
    context.stopping.set()
    time.sleep(0.3)
    with suppress(psutil.NoSuchProcess):
        program.resume()


def stopped_after_its_program(context: Context, program: psutil.Process) -> None:
    """Slurm signals every process of a job."""
    program.terminate()
    time.sleep(0.3)
    context.stopping.set()


def cancelled(context: Context, program: psutil.Process) -> None:
    context._stop_asked.set()


@dataclass
class Interrupted:
    """One frame to be labelled by workers, each with a folder of its own, on one store."""

    workers: WorkerHarness
    frame: Frame
    code: str
    settings: dict[str, Any]
    mode: str = "streaming"

    @property
    def root(self) -> Path:
        return self.workers.folder

    def put(self, name: str, data: bytes) -> Ref:
        ref = Ref.to(campaign_uri("methane", name), data)
        self.workers.store.put(ref.uri, data)
        return ref

    def command(self) -> m.Label:
        labels, files = read_files(LabelSettings(code=self.code, settings=self.settings), Path())
        spec = Spec.model_validate(
            {
                "name": "methane",
                "mode": self.mode,
                "type_map": sorted(set(self.frame.species)),
                "systems": {"s": {"structures": ["s.xyz"]}},
                "initial": {"perturb": {}},
                "stages": [{"name": "one", "systems": ["s"], "temperatures": [300]}],
                "labels": labels.model_dump(),
            }
        )
        for digest, data in files.items():
            self.put(f"inputs/{digest}", data)
        batch = self.put("frames.npz", Batch.of([self.frame]).dumps())
        return m.Label(
            id="command-1",
            campaign="methane",
            time=0.0,
            task="t1",
            title="label 1 frame",
            max_seconds=600.0,
            spec=self.put("spec.json", spec.model_dump_json().encode()),
            capability="toy",
            recipe=make_recipe(labels).digest,
            frames=(FrameRef(batch=batch, index=0, key=frame_key(self.frame)),),
        )

    def attempt(self, command: m.Label, end: End | None = None) -> Any:
        """The event that ends an attempt by a new worker, which `end` may end in the middle of the
        SCF. Its files are in `files(attempt)` then."""
        contexts: list[Context] = []

        def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
            contexts.append(context)
            try:
                bench = LabelerResources(context.scratch.parent / "bench", grace=20.0)
                return label(bench, command, context)
            finally:
                shutil.copytree(context.scratch, self.files(command.attempt))

        worker = self.workers.worker(handler)
        self.workers.send(command)
        assert isinstance(self.event(), m.TaskClaimed)
        if end is not None:
            program = program_at_work(worker.scratch)
            end(contexts[0], program)
        event = self.event()
        worker.stopping.set()
        return event

    def event(self) -> Any:
        delivery = self.workers.events.next(SECONDS)
        assert delivery is not None
        event = decode(delivery.body)
        return self.event() if isinstance(event, m.TaskHeartbeat) else event

    def files(self, attempt: int) -> Path:
        return self.root / "files" / str(attempt)

    def next_attempt(self, command: m.Label, restart: Ref | None) -> Any:
        attempt = command.attempt + 1
        changes = {"id": f"command-{attempt}", "attempt": attempt, "resume": restart}
        return self.attempt(command.model_copy(update=changes))

    def label_of(self, event: Any) -> FrameLabel:
        assert isinstance(event, m.LabelsDone), event
        assert event.rejected == ()
        return decode_labelled(self.workers.store.get(event.accepted[0].label.uri))[1]

    def continues(self) -> None:
        """Checks that the label is that of an undisturbed calculation, and that the second attempt
        takes fewer iterations."""
        undisturbed = self.root / "undisturbed"
        expected = point(self.code, self.settings, self.frame, undisturbed).label()
        command = self.command()
        event = self.attempt(command, stopped)
        assert isinstance(event, m.TaskReleased)
        assert event.preempted
        assert event.restart is not None
        found = self.label_of(self.next_attempt(command, event.restart))
        assert iterations(self.files(2)) <= iterations(undisturbed) - STOP_AT // 2
        assert len(list(self.files(2).iterdir())) == 1
        assert found.energy == pytest.approx(expected.energy, abs=1e-6)
        np.testing.assert_allclose(found.forces, expected.forces, atol=1e-4)


CP2K = {
    "cutoff": 80,
    "rel_cutoff": 40,
    "basis": {"H": "SZV-MOLOPT-SR-GTH"},
    "keywords": {
        "FORCE_EVAL": {"DFT": {"SCF": {"EPS_SCF": "1.0E-8"}, "QS": {"EPS_DEFAULT": "1.0E-10"}}}
    },
}
PW = {
    "pseudopotentials": {"Al": "Al.pz-vbc.UPF"},
    "ecutwfc": 12,
    "kpoints": [3, 3, 3],
    "smearing": "gaussian",
    "degauss": 0.03,
}


def hydrogen() -> Frame:
    atoms = molecule("H2", cell=[6.0, 6.2, 6.4], pbc=True)
    atoms.set_distance(0, 1, 0.8)
    return canonical(from_ase(atoms)).frame


def aluminium() -> Frame:
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.08, seed=3)
    return canonical(from_ase(atoms)).frame


@pytest.fixture
def cp2k(workers: WorkerHarness) -> Interrupted:
    require("cp2k")
    return Interrupted(workers, hydrogen(), "cp2k", CP2K)


@pytest.fixture
def pw(workers: WorkerHarness) -> Interrupted:
    require("qe")
    return Interrupted(workers, aluminium(), "qe", PW)


def test_cp2k_continues_from_its_wavefunction(cp2k: Interrupted) -> None:
    cp2k.continues()


def test_cp2k_continues_if_it_was_stopped_before_its_worker(cp2k: Interrupted) -> None:
    command = cp2k.command()
    event = cp2k.attempt(command, stopped_after_its_program)
    assert event.restart is not None
    cp2k.label_of(cp2k.next_attempt(command, event.restart))
    (folder,) = cp2k.files(2).iterdir()
    assert folder.name.endswith("-continued")


def test_pw_continues_from_its_density(pw: Interrupted) -> None:
    pw.continues()


@pytest.mark.parametrize(("mode", "end"), [("lockstep", stopped), ("streaming", cancelled)])
def test_nothing_is_kept_of_reproducible_or_cancelled_work(
    pw: Interrupted, mode: str, end: End
) -> None:
    pw.mode = mode
    event = pw.attempt(pw.command(), end)
    assert isinstance(event, m.TaskReleased)
    assert event.restart is None
    assert not list(pw.files(1).rglob("*.EXIT"))


def mark(data: bytes) -> bytes:
    """A Fortran file of one record."""
    length = len(data).to_bytes(4, sys.byteorder)
    return length + data + length


def test_files_that_the_program_cannot_read_cost_a_run_from_the_beginning(
    cp2k: Interrupted,
) -> None:
    command = cp2k.command()
    files = {"dpstream-RESTART.wfn": mark(b"not orbitals")}
    restart = Restart(command.frames[0].key, command.recipe, files)
    cp2k.label_of(cp2k.next_attempt(command, cp2k.put("results/t1/1/restart.zip", pack(restart))))
    names = sorted(path.name.rpartition("-")[2] for path in cp2k.files(2).iterdir())
    assert names == ["0", "continued"]


@pytest.mark.parametrize("change", ["frame", "recipe", "name", "object"])
def test_files_of_another_calculation_are_not_used(pw: Interrupted, change: str) -> None:
    pw.settings = PW | {"kpoints": [1, 1, 1], "ecutwfc": 8}
    command = pw.command()
    name = "out/elsewhere.dat" if change == "name" else "out/dpstream.save/charge-density.dat"
    restart = Restart(
        "another" if change == "frame" else command.frames[0].key,
        "another" if change == "recipe" else command.recipe,
        {name: mark(b"density")},
    )
    ref = pw.put("results/t1/1/restart.zip", pack(restart))
    if change == "object":
        pw.workers.store.put(ref.uri, pack(restart)[::-1])
    pw.label_of(pw.next_attempt(command, ref))
    (folder,) = pw.files(2).iterdir()
    assert folder.name.endswith("-0")
