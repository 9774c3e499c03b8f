"""A real run whose plan changes three times, and that is killed in between."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpstream.running.requests import is_at_work
from dpstream.services.coordinator.ledger.ledger import load_state
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.small_campaign import (
    COLD,
    WARM,
    finish,
    kill_tree,
    start,
    state_of,
    wait_until,
    write_spec,
)

LOWER = {"low": 0.35, "high": 100.0}


def amend(spec: Path, root: Path, **changes: Any) -> str:
    """`dpstream amend` in a second terminal; what it printed."""
    write_spec(spec.parent, **changes)
    words = ["amend", "small", str(spec), "--root", str(root), "--yes", "--wait", "60"]
    done = subprocess.run(
        [sys.executable, "-m", "dpstream", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def has(root: Path, **wanted: int) -> bool:
    if not (root / "campaigns/small/ledger").exists():
        return False
    state: State = state_of(root)
    found = {"version": state.committee.version, "plan": state.plan.number}
    return all(found[name] >= least for name, least in wanted.items())


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["lockstep", "streaming"])
def test_a_run_amended_three_times_and_killed_ends_by_its_last_plan(
    tmp_path: Path, mode: str
) -> None:
    root, first = tmp_path / "root", {"mode": mode, "stages": [COLD]}
    spec = write_spec(tmp_path, **first)
    process = start(spec, root)
    wait_until(lambda: has(root, version=1), 200)
    longer = {**first, "stages": [COLD, WARM]}
    assert "stage `warm` added after `cold`" in amend(spec, root, **longer)
    assert "plan 3 is " in amend(spec, root, **longer, trust=LOWER)
    kill_tree(process)
    assert not is_at_work(root, "small")
    process = start(spec, root)  # the plans before count, whether they wait or are in force
    wait_until(lambda: is_at_work(root, "small") and has(root, version=1), 200)
    richer = {**longer, "trust": LOWER, "budget": {"rounds": 4}}
    assert "budget.rounds 3 → 4" in amend(spec, root, **richer)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    view = CampaignView.read(FolderStore(root), "small")
    assert [plan.number for plan in view.plans.changed] == [2, 3, 4]
    assert view.state.finished is not None
    assert view.state.finished.plan == 4
    ended = {view.spec.stages[each.stage].name for each in view.state.exploration.ended}
    assert ended == {"cold", "warm"}
    assert load_state(FolderStore(root), "small").dumps() == view.state.dumps()
    report = (root / "small/report.html").read_text()
    assert report.index("stage `warm` added") < report.index("trust.low 0.4")
    assert report.index("trust.low 0.4") < report.index("budget.rounds 3")


@pytest.mark.soak
def test_an_ended_run_goes_on_with_one_more_stage(tmp_path: Path) -> None:
    root = tmp_path / "root"
    spec = write_spec(tmp_path, stages=[COLD])
    finish(spec, root)
    model = (root / "small/models/final.pb").read_bytes()
    write_spec(tmp_path, stages=[COLD, WARM])
    output = finish(spec, root, "--amend", "--yes")
    assert "the campaign, which ended converged, goes on" in output
    assert (root / "small/models/final.pb").read_bytes() != model
    assert "stage `warm` added after `cold`" in (root / "small/report.html").read_text()
