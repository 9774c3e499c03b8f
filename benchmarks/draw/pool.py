"""The pool of candidates, the initial frames and the held-out frames: methane by GFN2-xTB.

The pool holds the frames of dynamics on which a committee that knows the initial frames alone
disagrees; it is labelled completely, so that every draw from it has its labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.exploration.committee import engine, train
from benchmarks.vs_dpgen.inputs import Call, copies, engines, labelled, methane, recipe
from dpstream.services.explorer.selection.choose import Candidate
from dpstream.services.labeler.child import frame_facts, frame_from_facts
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.deviation import max_force_deviation
from dpstream.shared.atoms.frames import Batch, frame_key
from dpstream.shared.values import Condition, stable_seed

TEMPERATURES = (300.0, 600.0, 1000.0)
TYPE_MAP = ("C", "H")
MEMBERS = 4
FIRST_STEPS = 500
INITIAL = 10
DISPLACED = 0.05
"""Largest displacement in initial frames, Å."""
LOW, HIGH = 0.15, 5.0
"""Trust levels, eV/Å."""
TIMESTEP = 0.001
EXPLORED = (4, 100, 0.01)
HELD_OUT = (5, 10, 0.05)
"""Trajectories at each temperature, their frames, and ps between these."""
RECIPE = recipe("tblite", method="GFN2-xTB").model_dump()


Row = Mapping[str, Any]
"""A frame and the outcome of its single point, as JSON values."""


@dataclass(frozen=True)
class Walk:
    """Frames of one trajectory, `spacing` ps apart, with their labels."""

    temperature: float
    name: str
    spacing: float
    rows: Sequence[Row]

    @property
    def items(self) -> list[Labelled]:
        return [_labelled(row) for row in self.rows]


@dataclass(frozen=True)
class Data:
    """`labels`: of the candidates, by key; `held_out`: by temperature in K."""

    initial: Sequence[Labelled]
    candidates: Sequence[Candidate]
    labels: Mapping[str, Labelled]
    held_out: Mapping[float, Sequence[Labelled]]


def prepared(work: Path) -> Data:
    """The data; its labels are computed if `work` does not hold them yet."""
    kept = work / "labels.json"
    if not kept.exists():
        kept.write_text(json.dumps(_computed(work)))
    found = json.loads(kept.read_text())
    initial = [_labelled(row) for row in found["initial"]]
    explored = [Walk(**walk) for walk in found["explored"]]
    models = train(initial, TYPE_MAP, work / "committee", MEMBERS, FIRST_STEPS)
    candidates, labels = _judged(explored, models, work)
    held_out = [Walk(**walk) for walk in found["held out"]]
    return Data(initial, candidates, labels, {t: _at(held_out, t) for t in TEMPERATURES})


def _at(walks: Sequence[Walk], temperature: float) -> list[Labelled]:
    return [item for walk in walks if walk.temperature == temperature for item in walk.items]


def _labelled(row: Row) -> Labelled:
    return labelled(row["outcome"], frame_from_facts(row["frame"]))


def _computed(work: Path) -> dict[str, Any]:
    with engines(work / "scratch", count=1) as each:
        frames = [frame_facts(frame) for frame in copies(INITIAL, DISPLACED, "draw")]
        explored = each(_plans("explored", *EXPLORED), _walk)
        held_out = each(_plans("held out", *HELD_OUT), _walk)
        return {"initial": each(frames, _row), "explored": explored, "held out": held_out}


Planned = tuple[float, str, int, float]


def _plans(purpose: str, trajectories: int, frames: int, spacing: float) -> list[Planned]:
    return [
        (kelvin, f"{purpose}-{kelvin:g}-{number}", frames, spacing)
        for kelvin in TEMPERATURES
        for number in range(trajectories)
    ]


def _walk(call: Call, planned: Planned) -> dict[str, Any]:
    """The fields of a `Walk`."""
    temperature, name, frames, spacing = planned
    plan = {
        "seed": stable_seed("draw", name),
        "temperature": temperature,
        "timestep": TIMESTEP,
        "equilibrate": 0.2,
        "spacing": spacing,
        "frames": frames,
    }
    rows = call("reference_md", {"recipe": RECIPE, "frame": frame_facts(methane()), "plan": plan})
    return {"temperature": temperature, "name": name, "spacing": spacing, "rows": rows}


def _row(call: Call, facts: dict[str, Any]) -> Row:
    (outcome,) = call("single_points", {"recipe": RECIPE, "frames": [facts]})
    return {"frame": facts, "outcome": outcome}


def _judged(
    walks: Sequence[Walk], models: Sequence[Path], work: Path
) -> tuple[list[Candidate], dict[str, Labelled]]:
    """The candidates among the frames of these trajectories, with their labels."""
    candidates: list[Candidate] = []
    labels: dict[str, Labelled] = {}
    with engine("dpstream.services.explorer.lammps.child", work) as child:
        for walk in walks:
            items = walk.items
            batch, result = work / "frames.npz", work / "forces.npz"
            batch.write_bytes(Batch.of([item.frame for item in items]).dumps())
            names = list(map(str, models))
            child.call("evaluate", {"models": names, "batch": str(batch), "result": str(result)})
            with np.load(result, allow_pickle=False) as found:
                deviations = max_force_deviation(found["forces"])
            for number, (item, deviation) in enumerate(zip(items, deviations, strict=True)):
                if LOW <= deviation < HIGH:
                    candidate = _candidate(walk, number, item, float(deviation))
                    candidates.append(candidate)
                    labels[candidate.key] = item
    return candidates, labels


def _candidate(walk: Walk, number: int, item: Labelled, deviation: float) -> Candidate:
    return Candidate(
        key=frame_key(item.frame),
        trajectory=walk.name,
        condition=Condition(system="methane", temperature=walk.temperature),
        version=1,
        time_ps=(number + 1) * walk.spacing,
        planned_ps=len(walk.rows) * walk.spacing,
        deviation=deviation,
        item=0,
        row=number,
    )
