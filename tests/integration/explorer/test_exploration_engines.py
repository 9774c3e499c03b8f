"""The conformance kit of exploration engines, on real committees. A new engine is one more case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.services.explorer.engines import ENGINES
from dpstream.services.explorer.handlers import unserved
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.explore import explore
from dpstream.shared.atoms.deviation import max_force_deviation, virial_deviation
from dpstream.shared.atoms.frames import Batch, Frame, canonical, frame_key
from dpstream.shared.errors import Permanent
from dpstream.shared.messages import ChunkExplored
from dpstream.shared.values import Condition, Trust
from tests.support.programs.gromacs import MDP, METHANE, needs_gromacs
from tests.support.workers.explorer import (
    AL8,
    AU4CU4,
    BAROSTATS,
    CH4,
    ExplorerHarness,
    evaluated,
    total,
)

EVERYTHING = Trust(low=1e-12, high=1e9)
"""Every frame is a candidate, and uploaded."""
MORSE = ("pair_style morse 6.0", "pair_coeff 1 1 0.2703 1.1646 3.253")


@dataclass(frozen=True)
class Case:
    """An engine at work. `refused`: settings that can never work, and what is said of them;
    `pool`: so many frames lie in the batch of the starting structure; `backend`: that of the
    models."""

    engine: Mapping[str, Any]
    frame: Frame
    committee: str
    md: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 300.0
    refused: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pool: int = 1
    backend: str = "tensorflow"


TEMPLATE = """
units metal
atom_style atomic
variable STEPS equal V_NSTEPS
variable TEMP equal V_T # K
read_data conf.lmp
pair_style deepmd
timestep V_DT
velocity all create ${TEMP} V_SEED dist &
  gaussian
variable TAU equal 0.1
fix 1 all nvt temp ${TEMP} ${TEMP} ${TAU}
dump dpgen_dump
run ${STEPS}
"""


def altered(old: str, new: str) -> dict[str, Any]:
    return {"lammps": TEMPLATE.replace(old, new), "revisions": {"lammps": {"V_T": [300]}}}


def gromacs(topology: str = METHANE, mdp: str = MDP) -> dict[str, Any]:
    return {"mdp": mdp, "topologies": {"s": topology}}


BOND = {"kind": "distance", "groups": [["C1"], ["H1"]], "width": 0.05, "upper": 2.0}
CASES = {
    "md": Case({}, CH4, "methane_committee"),
    "swap-mc": Case(
        {"swaps": [["Au", "Cu"]], "every": 5, "attempts": 4, "temperature": 20000},
        AU4CU4,
        "alloy_committee",
    ),
    "colvars": Case(
        {"variables": [BOND], "metadynamics": {"every": 5, "height": 0.1}},
        CH4,
        "methane_committee",
        refused={
            "there is no atom H9": {"variables": [{**BOND, "groups": [["C1"], ["H9"]]}]},
            "line 2.*outside": {"input": "colvar {\n indexFile /etc/passwd\n}\n"},
        },
    ),
    "potential": Case(
        {"pair": MORSE},
        AL8,
        "periodic_committee",
        md={"ensemble": "npt"},
        refused={
            "must begin with": {"pair": ["shell touch me", MORSE[1]]},
            "runs code": {"pair": ["pair_style python 5.0", MORSE[1]]},
            "file outside": {"pair": ["pair_style table linear 9", "pair_coeff 1 1 /etc/x X"]},
        },
    ),
}
CASES["template"] = Case(
    altered("", ""),
    CH4,
    "methane_committee",
    refused={
        "line 4.*shell is not allowed": altered("variable STEPS", "shell touch"),
        "line 4.*style 'getenv'": altered("equal V_NSTEPS", "getenv HOME"),
        "line 12.*outside the worker": altered("nvt", "print 1 hello file /tmp/hello"),
        "line 12.*style 'python/invoke'": altered("nvt", "python/invoke 1 post_force f"),
        "line 14.*100.*md.steps": altered("${STEPS}", "90"),
        "line 13.*no PLUMED": altered("dump dpgen_dump", "fix dpgen_plm"),
        "line 8.*0.0005": altered("V_DT", "0.5"),
        "must be units metal": altered("units metal", "units real"),
    },
)
CASES["search"] = Case(
    {"relax_steps": 3}, AU4CU4, "alloy_committee", refused={"no random": {"volume": [0.1, 0.12]}}
)
CASES["frames"] = Case({}, CH4, "methane_committee", pool=25)
CASES["batched"] = Case(
    {},
    AU4CU4,
    "alloy_torch_committee",
    md={"ensemble": "npt-iso"} if BAROSTATS else {},
    backend="pytorch",
)
CASES["gromacs"] = Case(
    {"mdp": MDP, "topologies": {"s": METHANE}},
    CH4,
    "methane_committee",
    refused={
        "line 4.*include is not allowed": gromacs(mdp=MDP.replace("nsteps = 7", "include = -I/")),
        "make the ensemble nve": gromacs(mdp=MDP.replace("Tcoupl", "; ")),
        r"topologies.s: line 1.*only force fields": gromacs('#include "/etc/passwd"\n'),
        r"no element \(at.num\) of atom H1": gromacs(METHANE.replace("HC 1 1.008", "HC 1.008")),
        "does not match topology": gromacs(METHANE.replace("MET 1\n", "MET 2\n")),
        "the topology has C2 H3": gromacs(METHANE.replace("4 HC 1", "4 CT 1")),
        "No such moleculetype": gromacs(METHANE.replace("MET 1\n", "ETH 1\n")),
    },
)


IN_SOAK = ("template", "colvars")
"""Engines that run LAMMPS as `md` does: what they share with it is tested there."""


def case_of(kind: str, *more: str, marks: Sequence[pytest.MarkDecorator] = ()) -> Any:
    """A parameter of a test: an engine, some of which run in another environment."""
    needs = {"batched": [pytest.mark.pytorch], "gromacs": [needs_gromacs]}
    marks = [*marks, *needs.get(kind, ())]
    return pytest.param(kind, *more, marks=marks, id="-".join((kind, *more)))


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExplorerResources]:
    formats = frozenset({".pb", ".pth"})
    resources = ExplorerResources(tmp_path_factory.mktemp("bench"), formats=formats)
    resources.start()
    yield resources
    resources.close()


@pytest.fixture(params=map(case_of, CASES))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def case(kind: str) -> Case:
    return CASES[kind]


@pytest.fixture
def models(case: Case, request: pytest.FixtureRequest) -> list[Path]:
    """Two members are a committee, and load in half the time of four."""
    found: list[Path] = request.getfixturevalue(case.committee)
    return found[:2]


def harness_for(
    folder: Path, kind: str, models: list[Path], case: Case | None = None, **settings: Any
) -> ExplorerHarness:
    case = case or CASES[kind]
    stage = {
        "name": "one",
        "systems": ["s"],
        "temperatures": [case.temperature],
        "engine": {"kind": kind, **(settings or case.engine)},
    }
    if str(case.md.get("ensemble", "")).startswith("npt"):
        stage["pressures"] = [0.0]
    harness = ExplorerHarness(
        folder,
        case.frame,
        models,
        md=case.md,
        spec_extra={"stages": [stage], "training": {"backend": case.backend}},
    )
    if case.pool > 1:
        harness.structure = harness.frame_refs("pool.npz", Batch.of(shaken(case.frame, case.pool)))[
            0
        ]
    return harness


def shaken(frame: Frame, count: int) -> list[Frame]:
    rng = np.random.default_rng(3)
    moves = rng.normal(0, 0.03, (count, *frame.positions.shape))
    return [canonical(replace(frame, positions=frame.positions + move)).frame for move in moves]


def explored(
    resources: ExplorerResources, harness: ExplorerHarness, **more: Any
) -> list[ChunkExplored]:
    """All events of one task, by default with every frame as a candidate."""
    command = harness.explore(**{"condition": condition(harness), "trust": EVERYTHING, **more})
    last = explore(resources, command, harness.context(command))
    return [*harness.published(), last]


def condition(harness: ExplorerHarness) -> Condition:
    return next(harness.context(harness.explore()).spec().stages[0].conditions())


def check_deviations(
    resources: ExplorerResources,
    folder: Path,
    harness: ExplorerHarness,
    event: ChunkExplored,
    models: list[Path],
) -> None:
    """Those of the frames, whatever moved the atoms."""
    batch = harness.batch(event.candidates)
    found = evaluated(resources.engine, folder, models, batch)
    devi_f = max_force_deviation(found["forces"])
    np.testing.assert_allclose(batch.arrays["devi_f"], devi_f, rtol=2e-4, atol=2e-5)
    if batch.cells is not None:
        devi_v = virial_deviation(found["virials"], len(batch.species))
        np.testing.assert_allclose(batch.arrays["devi_v"], devi_v, rtol=2e-4, atol=2e-5)


def test_there_is_a_case_for_every_engine() -> None:
    """PLUMED is not here, and path integrals, slow to start, have a module of their own."""
    assert {*CASES, "plumed", "pimd"} == ENGINES.keys()


def test_every_check_is_a_canonical_frame_with_the_committees_deviations(
    resources: ExplorerResources, tmp_path: Path, kind: str, models: list[Path]
) -> None:
    harness = harness_for(tmp_path, kind, models)
    (event,) = explored(resources, harness)
    assert (total(event), event.dropped, event.stopped) == (20, 0, None)
    batch = harness.batch(event.candidates)
    assert len({frame_key(frame) for frame in batch}) > 1
    assert all(frame_key(frame) == frame_key(canonical(frame).frame) for frame in batch)
    assert batch.species == harness.frame.species
    np.testing.assert_allclose(batch.arrays["time_ps"], np.arange(1, 21) * 0.0025)
    check_deviations(resources, tmp_path, harness, event, models)

    (again,) = explored(resources, harness)
    assert list(map(frame_key, harness.batch(again.candidates))) == list(map(frame_key, batch))


def test_failed_checks_in_a_row_end_it(
    resources: ExplorerResources, tmp_path: Path, kind: str, models: list[Path]
) -> None:
    harness = harness_for(tmp_path, kind, models)
    (event,) = explored(resources, harness, trust=Trust(low=1e-13, high=1e-12))
    assert (event.counts.failed, event.dropped) == (5, 15)
    assert "in a row" in str(event.stopped)


@pytest.mark.parametrize(
    "kind",
    [case_of(kind, marks=[pytest.mark.soak] * (kind in IN_SOAK)) for kind in CASES],
    indirect=True,
)
def test_a_chunk_at_a_time_with_newer_committees_and_another_attempt(
    resources: ExplorerResources, tmp_path: Path, kind: str, models: list[Path]
) -> None:
    harness = harness_for(tmp_path, kind, models)
    chunks = explored(resources, harness, pinned=False)
    assert [event.chunk for event in chunks] == [0, 1, 2, 3]
    assert sum(map(total, chunks)) == 20

    again = explored(resources, harness, pinned=False, from_chunk=2, resume=chunks[1].restart)
    assert [event.chunk for event in again] == [2, 3]
    for one, other in zip(chunks[2:], again, strict=True):
        expected, found = harness.batch(one.candidates), harness.batch(other.candidates)
        np.testing.assert_allclose(found.positions, expected.positions, atol=2e-5)

    harness.add_committee(2, models[::-1])
    handed = explored(resources, harness, pinned=False)
    assert [event.version for event in handed] == [1, 2, 2, 2]
    check_deviations(resources, tmp_path, harness, handed[1], models[::-1])


@pytest.mark.parametrize(
    ("kind", "words"),
    [case_of(kind, words) for kind, case in CASES.items() for words in case.refused],
)
def test_what_can_never_work_is_permanent(
    resources: ExplorerResources, tmp_path: Path, kind: str, words: str, models: list[Path]
) -> None:
    harness = harness_for(tmp_path, kind, models, **CASES[kind].refused[words])
    with pytest.raises(Permanent, match=words):
        explored(resources, harness)


def test_a_path_composed_of_variables_is_written_only_where_templates_are_trusted(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    written = tmp_path / "written"
    file = str(written).replace("/", "${s}")
    printing = f"variable s string /\nfix w all print 1 TEXT file {file}\ndump dpgen_dump"
    given = altered("dump dpgen_dump", printing)
    harness = harness_for(tmp_path, "template", methane_committee[:2], **given)
    with pytest.raises(Permanent, match=r"value '/': must be a number, a plain word"):
        explored(resources, harness)
    assert not written.exists()
    resources.trusting = True
    try:
        explored(resources, harness)
    finally:
        resources.trusting = False
    assert "TEXT" in written.read_text()


def test_given_frames_are_looked_at_from_the_start_on_without_those_known(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = harness_for(tmp_path, "frames", methane_committee[:2])
    pool = Batch.loads(harness.store.get(harness.structure.batch.uri))
    start = harness.structure.model_copy(update={"index": 10})
    known = harness.put(
        "known.json", json.dumps([frame_key(pool[n]) for n in (3, 11, 12)]).encode()
    )
    (event,) = explored(resources, harness, structure=start, known=known)
    assert (total(event), event.dropped, event.stopped) == (13, 0, None), "those of 25 from 10 on"
    batch = harness.batch(event.candidates)
    left = [n for n in range(10, 25) if n not in (11, 12)]
    assert [frame_key(frame) for frame in batch] == [frame_key(pool[n]) for n in left]
    np.testing.assert_allclose(batch.arrays["time_ps"], [(n - 9) * 0.0025 for n in left])
    everything = harness.put("all.json", json.dumps([frame_key(f) for f in pool]).encode())
    (event,) = explored(resources, harness, known=everything)
    assert (total(event), event.dropped, event.last) == (0, 0, True)


def test_plumed_is_refused_where_lammps_has_none(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    harness = harness_for(
        tmp_path, "plumed", methane_committee, CASES["md"], input="d: DISTANCE ATOMS=1,2"
    )
    with pytest.raises(Permanent, match="built without PLUMED"):
        explored(resources, harness)


@needs_gromacs
def test_segments_of_gromacs_are_one_trajectory(
    resources: ExplorerResources, tmp_path: Path, methane_committee: list[Path]
) -> None:
    frames = []
    for chunk in (5, 20):
        case = replace(CASES["gromacs"], md={"chunk": chunk})
        folder = tmp_path / str(chunk)
        folder.mkdir()
        harness = harness_for(folder, "gromacs", methane_committee[:2], case)
        (event,) = explored(resources, harness)
        frames.append(harness.batch(event.candidates).positions)
    np.testing.assert_allclose(frames[0], frames[1], atol=2e-5)
    assert np.abs(np.diff(frames[0], axis=0)).max() < 0.2, "Å between checks"


def test_a_worker_without_gromacs_leaves_its_trajectories_to_others(
    tmp_path: Path, methane_committee: list[Path]
) -> None:
    lacking = ExplorerResources(tmp_path / "lacking", gromacs="no-such-gmx", warm=False)
    for kind, reason in (("gromacs", "GROMACS not found (no-such-gmx)"), ("md", None)):
        folder = tmp_path / kind
        folder.mkdir()
        harness = harness_for(folder, kind, methane_committee[:2])
        command = harness.explore()
        said = unserved(lacking, command, harness.context(command))
        assert (said or "").partition(";")[0] == (reason or "")
