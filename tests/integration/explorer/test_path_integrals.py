"""Path-integral dynamics with real LAMMPS processes, one for each of two beads.

Each bead loads TensorFlow: all but the refusal is for `make soak`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.services.explorer.engines.path_integrals import PathIntegrals
from dpstream.services.explorer.lammps.path_integral_child import BEAD, frames_file
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.explore import TrajectoryRun, explore, read_checkpoint
from dpstream.shared.atoms.deviation import max_force_deviation
from dpstream.shared.errors import Permanent
from dpstream.shared.messages import ChunkExplored
from dpstream.shared.runtime.context import Context
from dpstream.shared.values import Condition, Trust
from tests.support.workers.explorer import AL8, CH4, ExplorerHarness, evaluated
from tests.support.workers.orphans import outlived

MD = {"timestep": 0.0005, "every": 5, "steps": 20, "chunk": 2, "stop_after": 2}
STAGE = {"name": "one", "systems": ["s"], "temperatures": [300]}
EVERYTHING = Trust(low=1e-12, high=1e9)
"""Every frame is a candidate, and uploaded."""


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExplorerResources]:
    resources = ExplorerResources(tmp_path_factory.mktemp("bench"))
    resources.start()
    yield resources
    resources.close()


def methane_harness(folder: Path, models: list[Path], **md: Any) -> ExplorerHarness:
    stage = {**STAGE, "engine": {"kind": "pimd", "beads": 2}}
    return ExplorerHarness(folder, CH4, models, {**MD, **md}, {"stages": [stage]})


def walk(
    resources: ExplorerResources, harness: ExplorerHarness, **more: Any
) -> tuple[list[ChunkExplored], Context]:
    """All events of one task."""
    condition = Condition(system="s", temperature=300)
    command = harness.explore(**{"condition": condition, "trust": EVERYTHING, **more})
    context = harness.context(command)
    last = explore(resources, command, context)
    return [*harness.published(), last], context


@dataclass(frozen=True)
class Done:
    harness: ExplorerHarness
    events: list[ChunkExplored]
    context: Context
    models: list[Path]


@pytest.fixture(scope="module")
def done(
    resources: ExplorerResources,
    methane_committee: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Done:
    models = methane_committee[:2]
    harness = methane_harness(tmp_path_factory.mktemp("beads"), models)
    return Done(harness, *walk(resources, harness, pinned=False), models)


@pytest.mark.soak
def test_every_bead_of_every_check_is_judged(
    resources: ExplorerResources, done: Done, tmp_path: Path
) -> None:
    assert [(event.counts.candidate, event.stopped) for event in done.events] == [(4, None)] * 2
    first, second = (done.harness.batch(event.candidates) for event in done.events)
    np.testing.assert_allclose(first.arrays["time_ps"], np.repeat([2.5, 5.0], 2) * 1e-3)
    np.testing.assert_allclose(second.arrays["time_ps"], np.repeat([7.5, 10.0], 2) * 1e-3)
    found = max_force_deviation(
        evaluated(resources.engine, tmp_path, done.models, second)["forces"]
    )
    np.testing.assert_allclose(second.arrays["devi_f"], found, rtol=2e-4, atol=2e-5)


@pytest.mark.soak
def test_light_nuclei_spread_further_than_heavy_ones(done: Done) -> None:
    """Between the two beads of an atom, mean square, per atom of C and H: masses 12 and 1."""
    positions = np.concatenate(
        [done.harness.batch(event.candidates).positions for event in done.events]
    )
    apart = np.square(positions[0::2] - positions[1::2]).sum(axis=2).mean(axis=0)
    assert 3 < apart[1:].mean() / apart[0] < 40
    assert 0.02 < np.sqrt(apart[1:].mean()) < 0.4


@pytest.mark.soak
def test_a_piece_goes_on_where_the_beads_of_the_one_before_were(
    resources: ExplorerResources, done: Done
) -> None:
    """Every piece starts from restart files, 2.5 fs before its first check; so would another
    attempt, which finds them in the checkpoint."""
    first, second = (done.harness.batch(event.candidates).positions for event in done.events)
    steps = [np.abs(b - a).max() for a, b in ((first[:2], first[2:]), (first[2:], second[:2]))]
    assert steps[1] == pytest.approx(steps[0], rel=0.5)

    assert done.events[0].restart is not None
    saved, _, _ = read_checkpoint(done.context.fetch(done.events[0].restart))
    command = done.harness.explore()
    path = PathIntegrals(TrajectoryRun(resources, command, done.harness.context(command)).request)
    path.resume(saved)
    assert path.made == 2
    script = path.following()
    assert not script.velocity
    for bead in "01":
        assert Path(script.source.replace(BEAD, bead)).stat().st_size > 1000


@pytest.mark.soak
@pytest.mark.parametrize(
    ("md", "trust", "made", "why"),
    [
        ({"overlap": 1.5}, EVERYTHING, 0, "apart"),
        ({}, Trust(low=1e-13, high=1e-12), 2, "2 checks in a row"),
    ],
)
def test_a_trajectory_ends_early(
    resources: ExplorerResources,
    done: Done,
    tmp_path: Path,
    md: Mapping[str, Any],
    trust: Trust,
    made: int,
    why: str,
) -> None:
    """What the beads have left behind, looked at by other rules."""
    harness = methane_harness(tmp_path, done.models, **md)
    command = harness.explore(trust=trust)
    path = PathIntegrals(TrajectoryRun(resources, command, harness.context(command)).request)
    for bead in range(2):
        name = f"bead-{bead}.npy"
        (path.request.folder / name).write_bytes((done.context.scratch / name).read_bytes())
    segment = path.judged(None, 0)
    assert segment.made == made
    assert why in str(segment.stopped)
    assert (0 if segment.frames is None else len(segment.frames)) == 2 * made


def test_what_the_fix_has_not_is_refused(
    resources: ExplorerResources, tmp_path: Path, periodic_committee: list[Path]
) -> None:
    stage = {**STAGE, "pressures": [0.0], "engine": {"kind": "pimd", "beads": 2}}
    md = {**MD, "ensemble": "npt-tri"}
    harness = ExplorerHarness(tmp_path, AL8, periodic_committee[:2], md, {"stages": [stage]})
    with pytest.raises(
        Permanent, match="pimd: does not support npt-tri; supported: nve, nvt, npt, npt-iso"
    ):
        walk(resources, harness, condition=Condition(system="s", temperature=300, pressure=0.0))


@pytest.mark.soak
@pytest.mark.parametrize("ensemble", ["nve", "npt"])
def test_other_ensembles(
    ensemble: str, resources: ExplorerResources, tmp_path: Path, periodic_committee: list[Path]
) -> None:
    """The cell breathes with a barostat, the same for all beads, and with nothing else."""
    pressures = [1000.0] if ensemble == "npt" else []
    engine = {"kind": "pimd", "beads": 2}
    stage = {**STAGE, "pressures": pressures, "md": {"ensemble": ensemble}, "engine": engine}
    md = {**MD, "tau_p": 0.5}
    harness = ExplorerHarness(tmp_path, AL8, periodic_committee[:2], md, {"stages": [stage]})
    condition = Condition(system="s", temperature=300, pressure=next(iter(pressures), None))
    events, _ = walk(resources, harness, condition=condition)
    assert [(event.counts.candidate, event.stopped) for event in events] == [(8, None)]
    cells = harness.batch(events[0].candidates).cells
    np.testing.assert_allclose(cells[0::2], cells[1::2], atol=1e-8)
    volumes = np.abs(np.linalg.det(cells[0::2]))
    breathed = np.ptp(volumes) / volumes[0]
    assert (1e-4 < breathed < 0.1) if ensemble == "npt" else breathed < 1e-9


ENGINE = """
import json
from pathlib import Path
from dpstream.services.explorer.lammps.path_integral_child import path_integral
print(path_integral(2, ".", json.loads(Path("piece.json").read_text())))
"""


@pytest.mark.soak
def test_no_bead_outlives_its_explorer(
    resources: ExplorerResources, done: Done, tmp_path: Path
) -> None:
    harness = methane_harness(tmp_path, done.models)
    command = harness.explore(trust=EVERYTHING)
    path = PathIntegrals(TrajectoryRun(resources, command, harness.context(command)).request)
    folder = path.request.folder
    segment = {"checks": 10_000, "every": 100, "restart": str(folder / "restart"), "seed": 7}
    (folder / "piece.json").write_text(json.dumps({"script": vars(path.first()), **segment}))

    def moving(_: set[int]) -> bool:
        frames = [frames_file(folder, bead) for bead in range(2)]
        return all(file.exists() and file.stat().st_size for file in frames)

    assert outlived(ENGINE, folder, moving) == set()
