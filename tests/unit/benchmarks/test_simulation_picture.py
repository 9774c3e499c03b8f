"""The picture of `python -m benchmarks.simulation --picture FILE`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulation.picture import Point, draw, kept

MONEY = [Point("money", name, "streaming", y) for name, y in (("fixed", 1.0), ("spot", 0.3))]
CURVE = [Point("cost", "ledger", size, 2.0 * size) for size in (1000, 10)]


def test_points_of_several_runs_are_kept_and_the_newest_counts(tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    kept(file, [*MONEY, *CURVE])
    again = Point("money", "spot", "streaming", 0.2)
    assert kept(file, [again]) == [MONEY[0], again, *CURVE]
    assert kept(None, [again]) == [again]


@pytest.mark.slow
def test_a_picture_has_a_panel_of_bars_and_one_of_curves(tmp_path: Path) -> None:
    draw([*MONEY, *CURVE], tmp_path / "first.svg")
    drawn = (tmp_path / "first.svg").read_text()
    for words in ("money", "spot", "30", "cost", "1,000", "relative to the smallest"):
        assert f">{words}<" in drawn, words
    draw([*MONEY, *CURVE], tmp_path / "second.svg")
    assert (tmp_path / "second.svg").read_text() == drawn
