"""Campaigns in virtual time: the same seed gives the same table, no label is lost or doubled
whatever happens to messages and machines, and what is assumed is what is found."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.report.simulation import picture
from dpstream.services.coordinator.fleet.assumptions import PoolAssumptions, Times
from dpstream.services.coordinator.fleet.pools import FleetFile, read_fleet
from dpstream.services.coordinator.simulation.agenda import Agenda
from dpstream.services.coordinator.simulation.observed import observed
from dpstream.services.coordinator.simulation.outcome import SimulationOutcome
from dpstream.services.coordinator.simulation.simulation import Submission, simulate
from dpstream.services.coordinator.simulation.store import MemoryStore
from dpstream.services.coordinator.simulation.variants import difference, given, usual
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.coordinator.views.overview import label_counts
from dpstream.shared.errors import NotFound, SpecError
from dpstream.shared.messages import LabelsDone, TaskClaimed, TaskReleased
from dpstream.shared.ports import Store
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec, submission
from tests.support.campaigns.lossy_delivery import LossyDelivery
from tests.support.campaigns.small_campaign import write_spec
from tests.support.command_line import run_command
from tests.support.soak import SOAK

# The command configures the logs of its process.
pytestmark = pytest.mark.usefixtures("log_stream")


ROOT = Path(__file__).parents[3]
POOL = {"engine": "process", "serves": ["label.tblite"], "max": 8, "price": 2.0}
TASKS = {"label": {"mean": 60, "sd": 40}, "train": 120, "explore": 60, "reference": 90}


def fleet(pool: Mapping[str, Any] = {}, **assumed: Any) -> FleetFile:
    return FleetFile.model_validate(
        {
            "deployment": "lab",
            "pools": {"cpu": {**POOL, **pool}},
            "simulation": {"tasks": TASKS, **assumed},
        }
    )


def campaign(frames: int = 6, **changes: Any) -> Submission:
    """One stage of one condition, which converges with the third committee."""
    small = {
        "stages": [{"name": "cold", "systems": ["methane"], "temperatures": [50.0]}],
        "training": {"members": 2},
        "verification": {},
        "max_attempts": 100,
    }
    of = spec(**small | changes)
    return Submission(of, submission(of, frames))


def check_labels(outcome: SimulationOutcome) -> None:
    assert outcome.ended, outcome.why
    assert (outcome.lost, outcome.doubled) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lockstep", "streaming"])
def test_a_campaign_runs_to_its_verdict_and_the_fleet_to_zero(mode: str) -> None:
    outcome = simulate(campaign(mode=mode), fleet())
    check_labels(outcome)
    assert outcome.verdict == "converged"
    assert outcome.labels > 6
    last = outcome.moments[-1]
    assert (last.busy, last.idle, last.waiting, last.starting) == (0, 0, 0, 0)
    pool = outcome.pools["cpu"]
    assert 1 <= pool.most <= 8
    assert pool.cost == pytest.approx(2.0 * pool.hours)
    assert 0 < pool.busy_hours <= pool.hours


@pytest.mark.slow
def test_the_same_seed_gives_the_same_outcome_and_another_one_another() -> None:
    file = fleet({"spot": True}, pools={"cpu": {"preemptions": 0.5}})
    first, same, other = (simulate(campaign(10), file, seed) for seed in (1, 1, 2))
    assert first == same
    assert first.seconds != other.seconds
    assert first.verdict == other.verdict


@pytest.mark.soak
def test_the_same_seed_gives_the_same_outcome_in_another_process(tmp_path: Path) -> None:
    """Also under another order of sets of strings."""
    (tmp_path / "run.py").write_text(
        "from tests.unit.coordinator.test_simulation import *\n"
        "assumed = {'cpu': {'preemptions': 0.5}}\n"
        "print(simulate(campaign(30), fleet(pools=assumed), 7).model_dump_json())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, tmp_path / "run.py"],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert SimulationOutcome.model_validate_json(found.pop()).ended


def test_a_notice_is_a_flag_and_no_time() -> None:
    """Workers release their tasks at once, however long the notice is."""
    assert PoolAssumptions().notice
    with pytest.raises(ValueError, match="notice"):
        PoolAssumptions.model_validate({"notice": "5s"})


@pytest.mark.slow
@pytest.mark.parametrize("notice", [False, True])
def test_no_label_is_lost_or_doubled_whatever_happens(notice: bool) -> None:
    """Half of the workers are reclaimed in an hour, one message in ten is lost, one in ten doubled,
    and one label in ten rejected."""
    storm = {
        "pools": {"cpu": {"preemptions": 0.9, "notice": notice}},
        "messages": {"lost": 0.05, "doubled": 0.1, "delay": 1},
        "rejected": 0.1,
    }
    frames = 400 if SOAK else 60
    outcome = simulate(campaign(frames), fleet({"spot": True}, **storm))
    check_labels(outcome)
    assert outcome.preempted > 0
    assert outcome.rejected > 0
    assert outcome.messages["lost"] > 0


@pytest.mark.slow
def test_released_labels_continue_from_restart_files() -> None:
    reclaimed = {"pools": {"cpu": {"preemptions": 0.9}}}
    plain, continued = (
        simulate(campaign(60, mode="streaming"), fleet({"spot": True}, restarts=each, **reclaimed))
        for each in (False, True)
    )
    for outcome in (plain, continued):
        check_labels(outcome)
        assert outcome.preempted > 0
    assert continued.lost_seconds == pytest.approx(0)
    assert plain.lost_seconds > 60
    assert continued.busy_hours < plain.busy_hours


@pytest.mark.slow
def test_workers_wait_where_the_engine_has_no_room_and_start_late() -> None:
    assumed = {"cpu": {"capacity": 2, "start": 300, "image_pull": 600}}
    outcome = simulate(campaign(30), fleet(pools=assumed))
    check_labels(outcome)
    assert outcome.pools["cpu"].most == 2
    first = next(each.time for each in outcome.moments if each.busy)
    assert first >= 900
    assert max(each.waiting for each in outcome.moments) > 0


@pytest.mark.slow
def test_a_queue_without_a_pool_is_an_error_and_other_workers_are_assumed() -> None:
    with pytest.raises(SpecError, match=r"none serves label\.tblite.*simulation\.workers"):
        simulate(campaign(), fleet({"serves": ["label.vasp"]}))
    outcome = simulate(campaign(), fleet({"serves": ["label.vasp"]}, workers={"label.tblite": 3}))
    check_labels(outcome)
    assert outcome.cost == 0


@pytest.mark.slow
def test_a_campaign_whose_budget_is_used_up_stands_still() -> None:
    outcome = simulate(campaign(40), fleet({"budget": {"worker_hours": 0.05}}))
    assert (outcome.verdict, outcome.why) == ("stands still", "the budget is used up")
    assert not outcome.ended


# -------------------------------------------------------------------------------- the settings


def test_times_have_their_mean_their_deviation_and_their_limits() -> None:
    times = Times(mean=355, sd=291, least=7.6, most=1034)
    drawn = [times.draw(1, number) for number in range(4000)]
    assert min(drawn) >= 7.6
    assert max(drawn) == 1034
    assert statistics.fmean(drawn) == pytest.approx(335, rel=0.05)
    wide = [Times(mean=100, sd=50).draw(2, number) for number in range(4000)]
    assert statistics.fmean(wide) == pytest.approx(100, rel=0.05)
    assert statistics.stdev(wide) == pytest.approx(50, rel=0.1)
    assert {Times(values=(1.0, 2.0)).draw(3, number) for number in range(50)} == {1.0, 2.0}
    assert times.draw(1, 5) == times.draw(1, 5)


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"tasks": {"labels": 3}}, "simulation: tasks: 'labels': no kind of task; did you mean"),
        ({"tasks": {"label": {"sd": 3}}}, "sd: requires a mean"),
        ({"tasks": {"label": {"mean": 3, "least": 4, "most": 2}}}, "most: 2: must be at least"),
        ({"pools": {"cpus": {}}}, "simulation.pools.cpus: no such pool; did you mean 'cpu'?"),
        ({"pools": {"cpu": {"preemptions": 1.5}}}, "simulation.pools.cpu.preemptions"),
    ],
)
def test_a_bad_assumption_is_named_with_its_file_and_key(
    section: object, error: str, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(
        yaml.safe_dump({"deployment": "lab", "pools": {"cpu": POOL}, "simulation": section})
    )
    with pytest.raises(SpecError) as raised:
        read_fleet(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert error in str(raised.value)


# -------------------------------------------------------------------------------- the variants


@pytest.mark.slow
def test_fewer_workers_take_longer_and_twice_as_many_are_faster() -> None:
    file, work = fleet(), campaign(60)
    base = simulate(work, file)
    smaller, larger = usual(file, base)
    assert smaller.change == "cpu: max 3 instead of 8"
    assert larger.change == "cpu: max 16 instead of 8"
    assert " longer, " in difference(base, simulate(work, smaller.file))
    assert " shorter, " in difference(base, simulate(work, larger.file))
    assert difference(base, base) == "as long, at the same cost"


def test_a_change_of_a_pool_is_checked_like_its_file() -> None:
    file = fleet()
    assert given(file, "cpu.idle_exit=5m").file.pools["cpu"].idle_exit == 300
    for text, error in (
        ("cpu.max", "must be POOL.KEY=VALUE"),
        ("cpus.max=3", "'cpus': no such pool; did you mean 'cpu'?"),
        ("cpu.maxi=3", "maxi"),
        ("cpu.max=many", "pools.cpu.max"),
    ):
        with pytest.raises(SpecError, match=error.replace("?", r"\?")):
            given(file, text)


@pytest.mark.slow
def test_the_picture_shows_workers_tasks_and_cost() -> None:
    svg = picture(simulate(campaign(), fleet()))
    assert svg.count("<polyline") == 5 + 3  # curves and legend
    for word in ("workers", "tasks that wait", "cost", "minutes"):
        assert word in svg


@pytest.mark.slow
def test_the_command_prints_what_a_campaign_takes_and_what_fewer_workers_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_spec(tmp_path)
    document = {"deployment": "lab", "pools": {"cpu": POOL}, "simulation": {"tasks": TASKS}}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(document))
    files = {name: tmp_path / name for name in ("run.svg", "run.json")}
    words = ["simulate", str(path), "--fleet", str(tmp_path / "fleet.yaml")]
    words += ["--picture", str(files["run.svg"]), "--json", str(files["run.json"])]
    status, out, err = run_command(monkeypatch, capsys, *words, "--vary", "cpu.max=2")
    assert (status, err) == (0, "")
    outcome = SimulationOutcome.model_validate_json(files["run.json"].read_text())
    assert f"{outcome.cost:,.2f}, " in out
    assert "cpu: max 2 instead of 8: " in out
    assert "</svg>" in files["run.svg"].read_text()
    (tmp_path / "fleet.yaml").write_text(
        yaml.safe_dump({"deployment": "lab", "pools": {"cpu": POOL | {"serves": ["label.vasp"]}}})
    )
    status, out, err = run_command(monkeypatch, capsys, *words)
    assert status == 2
    assert err.startswith(f"dpstream: {tmp_path / 'fleet.yaml'}: pools: none serves label.tblite")


# --------------------------------------------------------------------- a campaign that has run


def test_what_a_campaign_shows_takes_the_place_of_what_is_assumed() -> None:
    world = CampaignSimulator(label_seconds=5.0, reject=lambda frame: frame[0] in "01")
    run = LossyDelivery(world, spec(mode="lockstep"))
    state = run.run()
    messages = tuple(m for event, decided in run.ledger for m in (event, *decided))
    assumed = fleet(workers={"train": 3})
    found = observed(CampaignView(state, messages), assumed)
    assert set(found.times("label").values) == {5.0}
    assert found.candidates == (0.2, 0.2)  # two of ten checks, up to the third committee
    counts = label_counts(state)
    answered = counts.labelled + counts.rejected
    assert found.rejected == pytest.approx(counts.rejected / answered, rel=0.2)
    assert found.workers == {"train": 3}
    assert found.times("screen") == assumed.simulation.times("screen")


def test_how_often_workers_were_reclaimed_follows_from_their_interrupted_tasks() -> None:
    """One worker in two hours, of four with a task for half an hour each."""
    run = LossyDelivery(CampaignSimulator(label_seconds=5.0), spec())
    state = run.run()
    messages = [m for event, decided in run.ledger for m in (event, *decided)]
    changed = [_by_process(each) for each in messages]
    labels = [each for each in changed if isinstance(each, LabelsDone) and each.last]
    fields = CampaignSimulator.envelope(labels[0], "released") | {"time": 1802.0}
    stopped = TaskReleased(**fields, reason="reclaimed", preempted=True)
    place = changed.index(labels[0])
    found = observed(CampaignView(state, (*changed[:place], stopped, *changed[place:])), fleet())
    hours = 0.5 * len(labels)
    assert found.of_pool("cpu").preemptions == pytest.approx(1 - math.exp(-1 / hours))


def _by_process(message: Any) -> Any:
    """Of workers of the pool `cpu` that need half an hour for each label task."""
    if isinstance(message, TaskClaimed):
        return message.model_copy(update={"process": "cpu-18b-0", "time": 2.0})
    return message.model_copy(update={"time": 1802.0 if isinstance(message, LabelsDone) else 2.0})


# ------------------------------------------------------------------------------------ the parts


def test_actions_run_in_the_order_of_their_times() -> None:
    agenda, seen = Agenda(), list[object]()
    for seconds, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        agenda.after(seconds, seen.append, name)
    while agenda.step():
        seen.append(agenda.now)
    assert seen == ["a", 1.0, "b", 1.0, "c", 2.0]


def test_the_store_keeps_the_newest_segment_alone() -> None:
    store = MemoryStore()
    port: Store = store
    assert port.create("campaigns/a/ledger/1", b"11")
    assert port.create("campaigns/a/ledger/2", b"22")
    assert not port.create("campaigns/a/ledger/2", b"33")
    assert list(port.list("campaigns/a/")) == ["campaigns/a/ledger/2"]
    port.put("campaigns/a/claims/t/1", b"x")
    assert store.written == {"ledger": 4, "claims": 1}
    with pytest.raises(NotFound):
        port.get("campaigns/a/ledger/1")


def test_objects_are_listed_while_others_are_created() -> None:
    """The ledger writes its snapshots in a thread."""
    store = MemoryStore()

    class Key(str):
        def startswith(self, *where: Any) -> bool:
            store.put("campaigns/a/snapshots/2", b"")
            return super().startswith(*where)

    store.put(Key("campaigns/a/snapshots/1"), b"")
    assert list(store.list("campaigns/a/snapshots/")) == ["campaigns/a/snapshots/1"]
