"""What `python -m benchmarks.draw` compares, without a training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.draw import __main__ as draw
from benchmarks.draw.pool import TEMPERATURES, Data
from dpstream.services.explorer.selection.choose import Candidate
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import Frame, FrameLabel
from dpstream.shared.values import Condition

COUNTS = (60, 120, 240)


def labelled(number: int) -> Labelled:
    frame = Frame(("H",), np.full((1, 3), float(number)), None)
    return Labelled(frame, FrameLabel(float(number), np.zeros((1, 3)), None), {})


def candidate(number: int, kelvin: float) -> Candidate:
    condition = Condition(system="methane", temperature=kelvin)
    return Candidate(f"{number:032x}", f"t-{kelvin:g}", condition, 1, 0.5, 1.0, 0.2, 0, number)


def data() -> Data:
    kelvins = [k for k, n in zip(TEMPERATURES, COUNTS, strict=True) for _ in range(n)]
    candidates = [candidate(number, kelvin) for number, kelvin in enumerate(kelvins)]
    labels = {each.key: labelled(each.row) for each in candidates}
    return Data([labelled(-1)], candidates, labels, {})


def numbers(parts: list[list[Labelled]]) -> list[float]:
    return sorted(item.label.energy for part in parts for item in part)


def test_the_draws_differ_and_the_layouts_hold_the_same_frames() -> None:
    given = data()
    turns, uniform = (draw.drawn(given, policy, 1) for policy in ("random", "uniform"))
    count = Counter(pick.condition.temperature for pick in turns)
    assert [count[kelvin] for kelvin in TEMPERATURES] == [50, 50, 50]
    assert len(uniform) == draw.LABELS
    assert len({pick.condition.temperature for pick in uniform[:40]}) == 3
    one, apart, even = (draw.parts_of(given, uniform, layout) for layout in draw.LAYOUTS)
    assert (len(one), len(apart), len(even)) == (1, 4, 4)
    assert numbers(one) == numbers(apart) == numbers(even)


def test_the_table_takes_seeds_that_all_arms_have_finished(tmp_path: Path) -> None:
    for number, arm in enumerate(draw.ARMS):
        for seed in (1, 2, 3) if number else (1, 2, 3, 4):
            force = {f"{k:g}": 0.1 * seed * (1 + number) for k in TEMPERATURES}
            drawn = {f"{k:g}": 50 for k in TEMPERATURES}
            arm.kept(tmp_path, seed).write_text(json.dumps({"force": force, "drawn": drawn}))
    rows = list(draw.table(tmp_path))
    assert len(rows) == 2 + len(draw.ARMS)
    assert "| 0.200 ± 0.058 | 1.000 ± 0.000 |" in rows[2]
    assert rows[3].endswith("| 0.400 ± 0.115 | 2.000 ± 0.000 |")
