"""The inputs that all arms share and the held-out set, labelled by PySCF once and kept in the
workdir."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
from ase.io import read, write

from benchmarks.vs_dpgen.size import SETTINGS, TYPE_MAP, Size
from dpstream.services.labeler.acceptance import AcceptanceLimits, Outcome, check_after
from dpstream.services.labeler.child import frame_facts, frame_from_facts
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.builders import perturbed
from dpstream.shared.atoms.dataset import Labelled, write_deepmd
from dpstream.shared.atoms.frames import Batch, Frame, canonical, from_ase, to_ase
from dpstream.shared.files import write_whole
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.spec import LabelSettings
from dpstream.shared.values import Recipe, stable_seed

METHANE = Path(__file__).parents[2] / "examples" / "methane-pbe" / "structures" / "CH4.xyz"
BOX = 30.0
"""Edge of the cell, Å; a POSCAR requires one, and both sides ignore it."""
DISPLACED = 0.15
"""Largest displacement in initial frames, Å."""
NUDGED = 0.03
"""Largest displacement in starting structures, Å."""
DRIVE: dict[str, Any] = {"grid_level": 1, "conv_tol": 1e-6}
"""Settings for the forces of reference dynamics: within 0.002 eV/Å of the full settings, and three
times as fast."""
TIMESTEP = 0.001
"""Time step of reference dynamics, ps."""

Call = Callable[[str, Mapping[str, Any]], Any]


def recipe(code: str = "pyscf", **settings: Any) -> Recipe:
    own = {**SETTINGS, **settings} if code == "pyscf" else settings
    return make_recipe(LabelSettings(code=code, settings=own))


@contextmanager
def engines(scratch: Path, count: int = 2) -> Iterator[Callable[[Sequence[Any], Any], list[Any]]]:
    """Starts `count` labeling engines; yields a function `each(items, work)` that returns
    `[work(call, item), …]`."""
    pool = [
        ChildProcess("dpstream.services.labeler.child", scratch / f"engine-{i}")
        for i in range(count)
    ]
    for engine in pool:
        engine.start()  # in this thread: an engine ends with the thread that started it
    free: Queue[ChildProcess] = Queue()
    for engine in pool:
        free.put(engine)

    def one(pair: tuple[Any, Any]) -> Any:
        engine = free.get()
        try:
            return pair[1](engine.call, pair[0])
        finally:
            free.put(engine)

    try:
        with ThreadPoolExecutor(count) as threads:
            yield lambda items, work: list(threads.map(one, [(item, work) for item in items]))
    finally:
        for engine in pool:
            engine.kill()


def labelled(facts: dict[str, Any], frame: Frame) -> Labelled:
    """The labelled frame. Raises RuntimeError if PySCF did not yield an acceptable label."""
    outcome = Outcome.of(facts)
    broken = check_after(frame, outcome, AcceptanceLimits.of(LabelSettings()))
    if broken is not None:
        raise RuntimeError(f"no label ({broken.rule}): {broken.detail}")
    return Labelled(frame, outcome.label(), {})


def label_all(frames: Sequence[Frame], each: Any) -> list[Labelled]:
    full = recipe().model_dump()

    def work(call: Call, frame: Frame) -> Labelled:
        facts = {"recipe": full, "frames": [frame_facts(frame)]}
        return labelled(call("single_points", facts)[0], frame)

    return list(each(frames, work))


def methane() -> Frame:
    return canonical(from_ase(read(METHANE))).frame


def copies(count: int, displace: float, *seed: object) -> list[Frame]:
    """Copies of methane with atoms displaced by up to `displace`, Å."""
    return [
        perturbed(methane(), displace, 0.0, np.random.default_rng(stable_seed(*seed, i)))
        for i in range(count)
    ]


def make_inputs(size: Size, seed: int, folder: Path) -> None:
    """Writes `initial/C1H4-nopbc` (labelled, DeePMD npy) and `structures/NNN.vasp`, unless done."""
    if (folder / "done").exists():
        return
    (folder / "structures").mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(copies(size.structures, NUDGED, "structures", seed)):
        atoms = to_ase(frame)
        atoms.set_cell(np.eye(3) * BOX)
        write(folder / "structures" / f"{i:03d}.vasp", atoms, format="vasp")
    with engines(folder / "scratch") as each:
        initial = label_all(copies(size.initial, DISPLACED, "initial", seed), each)
    write_deepmd(initial, folder / "initial", TYPE_MAP)
    (folder / "done").touch()


# ------------------------------------------------------------------------------- the held-out set


def held_out(size: Size, folder: Path) -> dict[str, Batch]:
    """The held-out set: by temperature, a batch with arrays forces `(n, a, 3)`, eV/Å, and
    trajectory `(n,)`. Each trajectory is stored when it is done, so that an interrupted run can
    continue."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [
        (temperature, number)
        for temperature in size.temperatures
        for number in range(size.held_out.trajectories)
        if not _kept(folder, temperature, number).exists()
    ]
    if missing:
        with engines(folder / "scratch") as each:
            each(missing, lambda call, item: _make_trajectory(call, size, folder, *item))
    return {f"{t:g} K": _gathered(size, folder, t) for t in size.temperatures}


def _kept(folder: Path, temperature: float, number: int) -> Path:
    return folder / f"{temperature:g}-{number:02d}.json"


def _make_trajectory(call: Call, size: Size, folder: Path, temperature: float, number: int) -> None:
    plan = size.held_out
    driver = recipe(**DRIVE) if plan.driver == "pyscf" else recipe("tblite", method="GFN2-xTB")
    path = {
        "seed": stable_seed("held-out", temperature, number),
        "temperature": temperature,
        "timestep": TIMESTEP,
        "equilibrate": 0.0,
        "spacing": plan.spacing,
        "frames": plan.frames,
    }
    start = {"recipe": driver.model_dump(), "frame": frame_facts(methane()), "plan": path}
    frames = [row["frame"] for row in call("reference_md", start)]
    outcomes = call("single_points", {"recipe": recipe().model_dump(), "frames": frames})
    rows = [
        {"frame": frame, "forces": labelled(outcome, frame_from_facts(frame)).label.forces.tolist()}
        for frame, outcome in zip(frames, outcomes, strict=True)
    ]
    write_whole(_kept(folder, temperature, number), json.dumps(rows))


def _gathered(size: Size, folder: Path, temperature: float) -> Batch:
    rows, numbers = [], []
    for number in range(size.held_out.trajectories):
        found = json.loads(_kept(folder, temperature, number).read_text())
        rows += found
        numbers += [number] * len(found)
    frames = [frame_from_facts(row["frame"]) for row in rows]
    forces = np.array([row["forces"] for row in rows])
    return Batch.of(frames, forces=forces, trajectory=np.array(numbers))
