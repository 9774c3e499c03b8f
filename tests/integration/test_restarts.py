"""CP2K and pw.x are stopped with their worker in the SCF; another worker continues."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.services.labeler.codes.cp2k import input_text
from dpstream.services.labeler.handlers import label
from dpstream.services.labeler.recipes import make_recipe, read_files
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.labeler.restarts import Restart, pack, unpack
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import Batch, Frame, FrameLabel, decode_labelled, frame_key
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.values import FrameRef, Ref, campaign_uri
from tests.integration.test_cp2k import hydrogen
from tests.integration.test_qe import aluminium
from tests.support.labeling_programs import point, require
from tests.support.worker import PROMPT, WorkerHarness, workers

assert workers

ITERATION = r"^ +\d+ (?:OT|Broy|P_Mix|NoMix|DIIS)|^ +iteration #"
"""Line of an SCF iteration in the output of either program."""
STOP_AT = 4


def iterations(folder: Path) -> int:
    """SCF iterations in the newest output below `folder`."""
    texts = sorted(folder.rglob("stdout"), key=lambda path: path.stat().st_mtime)
    return len(re.findall(ITERATION, texts[-1].read_text(), re.MULTILINE)) if texts else 0


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

    def attempt(self, command: m.Label, stop_at: int | None = None) -> Any:
        """The event that ends an attempt by a new worker, which is stopped at that iteration. Its
        files are in `files(attempt)` then."""

        def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
            try:
                bench = LabelerResources(context.scratch.parent / "bench", grace=20.0)
                return label(bench, command, context)
            finally:
                shutil.copytree(context.scratch, self.files(command.attempt))

        worker = self.workers.worker(handler)
        self.workers.send(command)
        assert isinstance(self.workers.next_event(), m.TaskClaimed)
        if stop_at is not None:
            deadline = time.monotonic() + PROMPT
            while iterations(worker.scratch) < stop_at and time.monotonic() < deadline:
                time.sleep(0.01)
            worker.stopping.set()
        event = self.workers.next_event()
        worker.stopping.set()
        return event

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
        """Stopped and continued, the label is that of an undisturbed calculation, and takes fewer
        iterations."""
        undisturbed = self.root / "undisturbed"
        expected = point(self.code, self.settings, self.frame, undisturbed).label()
        command = self.command()
        event = self.attempt(command, STOP_AT)
        assert isinstance(event, m.TaskReleased)
        assert event.preempted
        assert event.restart is not None
        found = self.label_of(self.next_attempt(command, event.restart))
        assert iterations(self.files(2)) <= iterations(undisturbed) - STOP_AT // 2
        assert len(list(self.files(2).iterdir())) == 1
        assert found.energy == pytest.approx(expected.energy, abs=1e-6)
        np.testing.assert_allclose(found.forces, expected.forces, atol=1e-4)


SLOW = {"cutoff": 300, "keywords": {"FORCE_EVAL": {"DFT": {"SCF": {"EPS_SCF": "1.0E-9"}}}}}
DENSE = {
    "pseudopotentials": {"Al": "Al.pz-vbc.UPF"},
    "ecutwfc": 16,
    "kpoints": [3, 3, 3],
    "smearing": "gaussian",
    "degauss": 0.03,
}


def test_cp2k_continues_from_its_wavefunction(workers: WorkerHarness) -> None:
    require("cp2k")
    Interrupted(workers, hydrogen(), "cp2k", SLOW).continues()


def test_pw_continues_from_its_density(workers: WorkerHarness) -> None:
    require("qe")
    Interrupted(workers, aluminium(), "qe", DENSE).continues()
