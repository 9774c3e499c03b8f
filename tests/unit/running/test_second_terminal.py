"""What a second terminal says to a `dpstream run`, and the amendments that it sends."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from dpstream.commands.read_spec import prepared
from dpstream.running import requests
from dpstream.running.amend import draft
from dpstream.running.local_cluster import sole_runner
from dpstream.running.requests import RequestFolder, is_at_work
from dpstream.running.submit import submit
from dpstream.services.coordinator.ledger.ledger import load_state
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import encode
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.coordinator import CoordinatorHarness
from tests.support.campaigns.local_run import LocalRun, at_work
from tests.support.campaigns.small_campaign import METHANE
from tests.support.command_line import run_command

pytestmark = pytest.mark.usefixtures("no_log_lines")
Call = Callable[..., tuple[int, str, str]]
ROOT = Path("runs")
SPEC: dict[str, Any] = {
    "name": "small",
    "type_map": ["H", "C"],
    "systems": {"methane": {"structures": ["methane.xyz"]}},
    "initial": {"perturb": {"copies": 2}},
    "md": {"steps": 100, "every": 10, "trajectories": 2, "chunk": 5},
    "stages": [{"name": "cold", "systems": ["methane"], "temperatures": [50]}],
    "audit": {"per_round": 0},
    "verification": {"nve_ps": 0},
}
HOT = {"name": "hot", "systems": ["methane"], "temperatures": [300]}


def write(file: str, /, **changes: Any) -> str:
    Path(file).write_text(yaml.safe_dump({**SPEC, **changes}))
    return file


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command line as typed in a folder with a spec and its campaign in `runs`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for variable in ("DPSTREAM_BROKER", "DPSTREAM_STORE"):
        monkeypatch.delenv(variable, raising=False)
    Path("methane.xyz").write_text(METHANE)
    spec, gathered, recipe = prepared(Path(write("campaign.yaml")), None, None, engines=False)
    submit(spec, gathered, recipe, FolderStore(ROOT), 100.0)
    return lambda *words: run_command(monkeypatch, capsys, *words)


def exploring(run: LocalRun) -> None:
    run.until(lambda state: state.exploration.round)


# ------------------------------------------------------------------------- ended campaigns


def verification_fails(run: LocalRun) -> None:
    """The worker that has the task cannot do it."""
    answer = run.harness.world.answer

    def answered(command: m.Command) -> list[m.Message]:
        if not isinstance(command, m.Verify):
            return answer(command)
        about = {"campaign": "small", "time": 1.0, "task": command.task, "attempt": command.attempt}
        return [m.TaskFailed(id="failed", permanent=True, reason="no LAMMPS", **about)]

    run.harness.world.answer = answered  # type: ignore[method-assign]
    run.until(lambda state: state.finished)
    run.harness.world.answer = answer  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["resume", "retry"])
def test_a_final_model_that_was_not_verified_is_verified_again(call: Call, command: str) -> None:
    with at_work(ROOT, "small") as run:
        verification_fails(run)
        last = "not-converged: the final model was not verified: after 1 attempt: no LAMMPS"
        assert " ".join(call("status", "small")[1].split()).startswith(f"small: {last}")
        said = "small: all stages finished; final model in progress\n"
        assert call(command, "small") == (0, said, "")
        run.until(lambda state: state.finished)
        assert call("list")[1].splitlines()[1].split()[:2] == ["small", "converged:"]
        status, _, err = call(command, "small")
        assert status == 2
        assert "the campaign has already ended (converged: " in err


def test_without_a_run_it_says_how_to_have_it_verified_again(call: Call) -> None:
    with at_work(ROOT, "small") as run:
        verification_fails(run)
    for command in ("resume", "retry"):
        assert "type: dpstream run SPEC --amend --store runs" in call(command, "small")[2]
    spec, gathered, _ = prepared(Path("campaign.yaml"), None, "small", engines=False)
    found = draft(FolderStore(ROOT), spec, gathered, 1.0)
    assert found is not None
    assert list(found.lines())[1:] == [
        "  none: the final model is verified again",
        "the campaign, which ended not-converged, goes on",
    ]


# ------------------------------------------------------------------------- requests


@pytest.mark.slow
def test_status_and_watch_say_that_nothing_runs(call: Call) -> None:
    remark = "no dpstream run of it is active in runs; next: dpstream run SPEC"
    with at_work(ROOT, "small") as run:
        exploring(run)
        assert remark not in call("status", "small")[1]
    assert call("status", "small")[1].splitlines()[-1] == remark
    with at_work(ROOT, "small"):
        call("pause", "small")
    assert call("watch", "small")[1].splitlines()[0] == f"small: {remark}"
    assert "next: dpstream resume small, or dpstream run SPEC" in call("status", "small")[1]


@pytest.mark.slow
def test_a_run_is_paused_resumed_and_cancelled(call: Call) -> None:
    with at_work(ROOT, "small") as run:
        exploring(run)
        step = "next: dpstream resume small, or dpstream run SPEC if nothing runs it\n"
        assert call("pause", "small", "--why", "lunch") == (0, f"small: paused: lunch\n{step}", "")
        assert run.requests.pause == "lunch"
        status, said, _ = call("status", "small")
        assert (status, said.splitlines()[0]) == (0, "small: paused: lunch")
        assert call("resume", "small")[1].startswith("small: stage cold (1 of 1)")
        assert call("cancel", "small")[1].startswith("small: cancelled: cancelled on request\n")
        assert run.state.finished is not None
    assert list(run.requests.folder.iterdir()) == [], "every request is taken once"


def test_abandoned_tasks_of_a_run_are_retried(call: Call) -> None:
    with at_work(ROOT, "small") as run:
        exploring(run)
        assert call("retry", "small")[2] == "dpstream: small: no abandoned task can be retried\n"


@pytest.mark.parametrize("words", [["pause", "small"], ["resume", "small"], ["cancel", "small"]])
def test_without_a_run_the_command_says_what_to_type(call: Call, words: list[str]) -> None:
    assert call(*words) == (
        2,
        "",
        "dpstream: small: no dpstream run of it is active in runs; type: dpstream run SPEC "
        "--store runs (for a deployment: give --broker, or set DPSTREAM_BROKER)\n",
    )
    assert not RequestFolder.of(ROOT, "small").folder.exists()


def test_a_request_that_is_not_answered_is_withdrawn(call: Call) -> None:
    with sole_runner(ROOT, "small"):  # a run that has ended, and exports its results
        assert call("pause", "small", "--wait", "0") == (
            0,
            "small: the run did not answer within 0 s, so that the request was withdrawn; if the "
            "run has ended, type: dpstream run SPEC --store runs\n",
            "",
        )
    assert list(RequestFolder.of(ROOT, "small").folder.iterdir()) == []


def test_after_the_end_the_command_says_how_it_goes_on(call: Call) -> None:
    with at_work(ROOT, "small") as run:
        run.until(lambda state: state.finished)
    status, _, said = call("pause", "small")
    assert status == 2
    assert said.endswith(
        "; to continue it, change its plan: dpstream run SPEC --amend (in a "
        "deployment: dpstream amend NAME SPEC)\n"
    )
    assert call("amend", "small", write("hot.yaml", stages=[*SPEC["stages"], HOT]), "--yes")[2] == (
        "dpstream: small: no dpstream run of it is active in runs; type: dpstream run hot.yaml "
        "--amend --store runs (for a deployment: give --broker, or set DPSTREAM_BROKER)\n"
    )


def test_the_lock_tells_whether_a_run_is_at_work(call: Call) -> None:
    assert not is_at_work(ROOT, "small")
    with at_work(ROOT, "small"):
        assert is_at_work(ROOT, "small")
        assert not is_at_work(ROOT, "another")
    assert not is_at_work(ROOT, "small")


def test_only_what_operators_may_say_is_taken_from_the_folder(tmp_path: Path) -> None:
    requests = RequestFolder(tmp_path / "requests", "small")
    assert list(requests.take()) == [], "no folder, no request"
    fields: dict[str, Any] = {"campaign": "small", "time": 0.0}
    ready = m.StageEnded(id="stage", stage=0, verdict="converged", why="", **fields)
    requests.leave(m.CampaignResumed(id="first", **fields))
    (requests.folder / "second.json").write_bytes(encode(ready))
    (requests.folder / "third.json").write_bytes(b"{}")
    (requests.folder / "fourth.json").write_bytes(b" " * 100_000)
    assert [message.id for message in requests.take()] == ["first"]
    assert list(requests.folder.iterdir()) == []
    assert list(requests.take()) == []


def odd_files(folder: Path) -> None:
    (folder / "dangling.json").symlink_to(folder / "nothing")
    (folder / "loop.json").symlink_to(folder / "loop.json")
    (folder / "endless.json").symlink_to("/dev/zero")
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    with (folder / "large.json").open("wb") as file:
        file.truncate(2**40)  # takes no space
    other = m.CampaignCancelled(id="other", campaign="another", time=0.0)
    (folder / "other.json").write_bytes(encode(other))


def test_odd_files_stop_no_request(tmp_path: Path) -> None:
    requests = RequestFolder(tmp_path / "requests", "small")
    for name in ("one", "two"):
        requests.leave(m.CampaignResumed(id=name, campaign="small", time=0.0))
        odd_files(requests.folder)
        with capture_logs() as logged:
            assert [message.id for message in requests.take()] == [name]
            assert list(requests.take()) == []
        assert {line["event"] for line in logged} == {"a request cannot be read"}
        left = [file.name for file in requests.folder.iterdir()]
        assert left == ["folder.json"]
        (requests.folder / "folder.json").rmdir()
    odd_files(requests.folder)
    requests.clear()
    assert [file.name for file in requests.folder.iterdir()] == ["folder.json"]


def test_a_request_that_cannot_be_removed_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = RequestFolder(tmp_path / "requests", "small")
    requests.leave(m.CampaignResumed(id="one", campaign="small", time=0.0))

    def refuses(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuses)
    with capture_logs() as logged:
        assert list(requests.take()) == []
        assert list(requests.take()) == []
    assert [line["event"] for line in logged] == ["a request cannot be read"]


def test_requests_that_no_run_took_in_are_dropped(tmp_path: Path) -> None:
    requests = RequestFolder(tmp_path / "requests", "small")
    requests.leave(m.CampaignCancelled(id="old", campaign="small", time=0.0))
    requests.clear()
    assert list(requests.take()) == []


def test_a_request_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    requests = RequestFolder(tmp_path / "requests", "small")
    requests.leave(m.CampaignResumed(id="one", campaign="small", time=0.0))
    assert (requests.folder / "one.json").stat().st_mode & 0o777 == 0o600


# ------------------------------------------------------------------------- amendments


@pytest.mark.slow
def test_a_stage_is_appended_while_a_run_is_at_work(call: Call) -> None:
    hot = write("hot.yaml", stages=[*SPEC["stages"], HOT])
    with at_work(ROOT, "small") as run:
        exploring(run)
        status, said, errors = call("amend", "small", hot, "--yes")
        assert (status, errors) == (0, "")
        first, *lines = said.splitlines()
        assert first == "small: plan 1 becomes plan 2:"
        assert lines[:2] == [
            "  stage `hot` added after `cold`: methane at 300 K",
            "nothing that exists becomes invalid",
        ]
        assert lines[2].startswith("small: plan 2 is in force; stage cold (1 of 2)")
        assert call("amend", "small", hot, "--yes") == (
            0,
            "small: nothing differs from its plan\n",
            "",
        )
        run.until(lambda state: state.finished)
        assert run.state.plan.records[0].author
    said = " ".join(call("status", "small")[1].split())
    assert "stage `hot` added after `cold`" in said
    assert "cold converged, hot converged" in said


@pytest.mark.slow
def test_an_urgent_amendment_does_not_wait_behind_another(call: Call) -> None:
    of: dict[str, Any] = {"name": "slow", "mode": "lockstep"}
    spec, gathered, recipe = prepared(Path(write("slow.yaml", **of)), None, None, engines=False)
    submit(spec, gathered, recipe, FolderStore(ROOT), 100.0)
    hot = {**of, "stages": [*SPEC["stages"], HOT]}
    first, urgent = write("hot.yaml", **hot), write("urgent.yaml", **hot, max_attempts=9)
    with at_work(ROOT, "slow") as run:
        exploring(run)
        said = call("amend", "slow", first, "--yes")[1].splitlines()
        assert said[-1].startswith("slow: plan 2 is accepted; in force when the running round")
        said = call("amend", "slow", urgent, "--yes")[1].splitlines()
        assert said[:2] == ["slow: plan 2 becomes plan 3:", "  max_attempts 3 → 9"]
        assert said[-1].startswith("slow: plan 3 is accepted; its changes are in force, those")
        assert run.state.spec.max_attempts == 9
        run.until(lambda state: state.finished)
        assert not run.state.plan.asked
        assert [stage.name for stage in run.state.spec.stages] == ["cold", "hot"]
        assert run.state.spec.max_attempts == 9


def test_workers_of_a_plan_that_waits_stop_no_other_amendment(call: Call) -> None:
    """As after dpstream run SPEC --amend, whose labelers serve both plans."""
    of: dict[str, Any] = {"name": "slow", "mode": "lockstep"}
    spec, gathered, recipe = prepared(Path(write("slow.yaml", **of)), None, None, engines=False)
    submit(spec, gathered, recipe, store := FolderStore(ROOT), 100.0)
    of |= {"labels": {"worker_class": "big"}, "stages": [*SPEC["stages"], HOT]}
    bigger, *_ = prepared(Path(write("bigger.yaml", **of)), None, None, engines=False)
    with at_work(ROOT, "slow") as run:
        exploring(run)
        found = draft(store, bigger, gathered, 100.0)
        assert found is not None
        run.requests.leave(found.announced(store))
        run.step()
        assert len(run.state.plan.asked) == 1
        richer = write("richer.yaml", **of, budget={"labels": 99})
        assert call("amend", "slow", richer, "--yes")[::2] == (0, "")


def test_an_amendment_may_be_sent_right_after_the_submission(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = write("hot.yaml", stages=[*SPEC["stages"], HOT])
    harness = CoordinatorHarness(FolderStore(ROOT))
    monkeypatch.setattr(requests, "open_bus", lambda broker: InProcessBus(harness.bus.broker))
    words = ("amend", "small", hot, "--yes", "--wait", "0", "--broker", "amqp://u:p@h:1/v")
    status, said, errors = call(*words)
    assert (status, errors) == (1, "")
    assert "  stage `hot` added after `cold`: methane at 300 K" in said.splitlines()
    assert "the request takes effect when one runs" in said.splitlines()[-1]
    harness.step()
    assert harness.coordinator.open_campaigns["small"].state.plan.number == 2
    state = harness.finish("small")
    assert [state.spec.stages[ended.stage].name for ended in state.exploration.ended] == [
        "cold",
        "hot",
    ]


def test_what_was_not_submitted_is_not_amended(call: Call) -> None:
    (ROOT / "campaigns/small/submitted.json").unlink()
    assert call("amend", "small", "campaign.yaml", "--yes") == (
        2,
        "",
        "dpstream: small: the campaign has not begun; submit it first\n",
    )


def test_an_amendment_that_nobody_answers_is_no_success(call: Call) -> None:
    hot = write("hot.yaml", stages=[*SPEC["stages"], HOT])
    with at_work(ROOT, "small") as run:
        exploring(run)
    with sole_runner(ROOT, "small"):  # a run that has ended, and exports its results
        status, said, errors = call("amend", "small", hot, "--yes", "--wait", "0")
    assert (status, errors) == (1, "")
    assert said.splitlines()[-1].startswith("small: the run did not answer within 0 s, so that")
    assert list(RequestFolder.of(ROOT, "small").folder.iterdir()) == []


def test_without_a_yes_nothing_is_sent(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    hot = write("hot.yaml", stages=[*SPEC["stages"], HOT])
    with at_work(ROOT, "small") as run:
        exploring(run)
        before = sorted(FolderStore(ROOT).list("campaigns/small/inputs/"))
        status, said, errors = call("amend", "small", hot)
        assert (status, errors) == (1, "dpstream: not confirmed; nothing was changed\n")
        assert "Change the plan? [y/N]" in said
        run.step()
        assert run.state.plan.number == 1
        assert sorted(FolderStore(ROOT).list("campaigns/small/inputs/")) == before


BAD: list[tuple[dict[str, Any], str]] = [
    ({"seed": 5}, "small: refused: seed: 1 → 5: cannot change in a campaign: all random numbers"),
    ({"trust": {"low": 0.3, "high": 0.1}}, "bad.yaml: trust: low (0.3) must be below high (0.1)"),
    (
        {"stages": [{**HOT, "systems": ["nothing"]}]},
        "bad.yaml: stages.0.systems: 'nothing' is not in systems (methane)",
    ),
    (
        {"labels": {"worker_class": "big"}},
        "small: labels.worker_class: the workers of this run serve the former class; stop it",
    ),
    (
        {"systems": {"methane": {"structures": ["methane.xyz", "other.xyz"]}}},
        "small: refused: systems.methane: its files hold other structures than those that",
    ),
]


@pytest.mark.parametrize(("changes", "line"), BAD)
def test_a_bad_amendment_is_refused_before_anything_is_sent(
    call: Call, changes: dict[str, Any], line: str
) -> None:
    Path("other.xyz").write_text(METHANE.replace("0.629", "0.640"))
    with at_work(ROOT, "small") as run:
        exploring(run)
        status, said, errors = call("amend", "small", write("bad.yaml", **changes), "--yes")
        assert (status, said, errors.count("\n")) == (2, "", 1)
        assert errors.startswith(f"dpstream: {line}")
        run.step()
        assert run.state.plan == load_state(FolderStore(ROOT), "small").plan
        assert not run.state.plan.asked
        assert run.state.plan.number == 1


@pytest.mark.slow
def test_a_new_system_is_stored_and_explored(call: Call) -> None:
    Path("other.xyz").write_text(METHANE.replace("0.629", "0.640"))
    wider = {**SPEC["systems"], "wide": {"structures": ["other.xyz"]}}
    after = write(
        "wide.yaml", systems=wider, stages=[*SPEC["stages"], {**HOT, "systems": ["wide"]}]
    )
    with at_work(ROOT, "small") as run:
        exploring(run)
        said = call("amend", "small", after, "--yes")[1]
        assert "  system `wide` added" in said.splitlines()
        (frame,) = run.state.submitted.systems["wide"] if run.state.submitted else ()
        assert FolderStore(ROOT).exists(frame.batch.uri)
        initial = [f for f in run.state.labels.frames.values() if f.purpose == "initial"]
        assert len(initial) == 2, "its two perturbed copies; those of methane are learned"
        run.until(lambda state: state.finished)
    assert call("amend", "small", "campaign.yaml", "--yes")[2].startswith(
        "dpstream: small: refused: systems.wide"
    )


@pytest.mark.slow
def test_the_same_spec_resumes_an_amended_campaign_and_the_former_one_does_not(call: Call) -> None:
    hot = write("hot.yaml", stages=[*SPEC["stages"], HOT])
    with at_work(ROOT, "small") as run:
        exploring(run)
        call("amend", "small", hot, "--yes")
    spec, gathered, recipe = prepared(Path(hot), None, None, engines=False)
    assert submit(spec, gathered, recipe, FolderStore(ROOT), 100.0).campaign == "small"
    status, _, said = call("run", "campaign.yaml", "--workers", "trainer=1")
    assert status == 2
    assert "changed: stage `hot` dropped; change its plan with dpstream run SPEC --amend" in said


def test_an_amendment_of_a_deployment_is_no_option_of_run(call: Call) -> None:
    status, _, said = call("run", "campaign.yaml", "--amend", "--broker", "amqp://u:p@h:1/v")
    assert status == 2
    assert said == "dpstream: --amend: in a deployment, type: dpstream amend NAME SPEC\n"


@pytest.mark.slow
def test_a_new_campaign_begins_with_the_amended_plan(call: Call) -> None:
    with at_work(ROOT, "small") as run:
        run.until(lambda state: state.submitted)
        more = write("more.yaml", stages=[*SPEC["stages"], HOT], budget={"rounds": 3})
        assert call("amend", "small", more, "--yes")[0] == 0
    assert call("new", "next", "--from", "small")[::2] == (0, "")
    text = Path("next/campaign.yaml").read_text()
    assert "begins with plan 2 of small and its 0 labels" in text
    assert "The labels in dataset/" not in text
    document = yaml.safe_load(text)
    assert [stage["name"] for stage in document["stages"]] == ["cold", "hot"]
    assert document["budget"] == {"rounds": 3}
    assert document["initial"] == {"perturb": {"copies": 2}}, "nothing was trained yet"
    assert call("validate", "next/campaign.yaml")[::2] == (0, "")
