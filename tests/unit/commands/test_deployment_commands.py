"""The commands of a deployment where no server is needed: a folder as store, the embedded bus."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dpstream.running import connection
from dpstream.running.connection import FollowedCampaign, once_taken_in, publish, request
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    LedgerEntry,
)
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.errors import SpecError
from dpstream.shared.store.folder import FolderStore
from dpstream.terminal.ledger_lines import LedgerLines
from dpstream.terminal.live import LiveView
from tests.support.campaigns import sample_ledger
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.coordinator import CoordinatorHarness, first_task, small
from tests.support.command_line import run_command

pytestmark = pytest.mark.usefixtures("no_log_lines")
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command line as typed beside a folder `runs`; exit status and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for variable in ("DPSTREAM_BROKER", "DPSTREAM_STORE"):
        monkeypatch.delenv(variable, raising=False)

    def called(*words: str) -> tuple[int, str]:
        status, out, err = run_command(monkeypatch, capsys, *words)
        return status, out + err

    return called


# --------------------------------------------------------------------------------- command line


def test_list_logs_and_watch_read_a_folder(call: Call) -> None:
    sample_ledger.write_sample(Path("runs"))
    assert "not-converged: stage cold ended stuck" in call("list")[1]
    status, said = call("logs")
    assert status == 0
    assert "claimed" in said
    assert "by labeler-0" in said
    assert len(call("logs", "--task", "label-2")[1].splitlines()) == 3
    assert call("logs", "--follow")[1] == said  # it has ended: nothing to wait for
    assert call("watch")[0] == 1
    assert call("list", "--store", "runs") == call("list", "--root", "runs")


@pytest.mark.parametrize("place", ["ledger", "spec.json", "finished.json"])
def test_a_damaged_campaign_is_listed_with_the_others(call: Call, place: str) -> None:
    sample_ledger.write_sample(Path("runs"))
    campaigns = Path("runs/campaigns")
    damaged = campaigns / "another"
    shutil.copytree(campaigns / sample_ledger.NAME, damaged)
    spoilt = damaged / place
    (min(spoilt.iterdir()) if spoilt.is_dir() else spoilt).write_bytes(b"{}")
    status, said = call("list")
    assert status == 0
    assert re.search(r"^another +damaged: ", said, re.MULTILINE)
    assert "next: dpstream repair another" in " ".join(said.split())
    assert "not-converged: stage cold ended stuck" in said


def test_the_store_may_be_named_in_the_environment(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_ledger.write_sample(Path("elsewhere"))
    monkeypatch.setenv("DPSTREAM_STORE", "elsewhere")
    assert "not-converged" in call("list")[1]
    assert call("status", "--root", "none")[0] == 2


def test_logs_go_on_while_the_campaign_does(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    store = sample_ledger.write_half(Path("runs"))

    def finish(seconds: float) -> None:
        ledger, _ = Ledger.open(store, sample_ledger.NAME)
        last = m.CampaignFinished(
            id="f", campaign=sample_ledger.NAME, time=0.0, verdict="cancelled", why="enough"
        )
        ledger.append([LedgerEntry(last)])

    monkeypatch.setattr("dpstream.commands.results.follow.time.sleep", finish)
    said = call("logs", "--follow")[1]
    assert "campaign-finished" in said.splitlines()[-1]
    assert "cancelled: enough" in said.splitlines()[-1]
    assert said.count("campaign-submitted") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("list",),
            "--store: runs: no such folder; type dpstream run SPEC first, give the store of a "
            "campaign, or set DPSTREAM_STORE",
        ),
        (
            ("list", "--store", "s3://UPPER"),
            "--store: 's3://UPPER': bucket 'UPPER': must be 3 to 63",
        ),
        (("retry",), "Missing argument 'NAME'; see dpstream retry --help"),
    ],
)
def test_bad_input_is_one_line(call: Call, words: tuple[str, ...], line: str) -> None:
    status, said = call(*words)
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"dpstream: {line}")


@pytest.mark.parametrize("words", [("pause", "--why", "x"), ("resume",), ("cancel",)])
def test_who_says_something_needs_a_broker_or_a_run(call: Call, words: tuple[str, ...]) -> None:
    sample_ledger.write_half(Path("runs"))
    command, *options = words
    status, said = call(command, sample_ledger.NAME, *options)
    assert (status, said.count("\n")) == (2, 1)
    assert said == (
        f"dpstream: {sample_ledger.NAME}: no dpstream run of it is active in runs; type: dpstream "
        "run SPEC --store runs (for a deployment: give --broker, or set DPSTREAM_BROKER)\n"
    )


def test_what_has_ended_is_told_no_more(call: Call) -> None:
    store = sample_ledger.write_sample(Path("runs"))
    last = m.CampaignFinished(
        id="f", campaign=sample_ledger.NAME, time=0.0, verdict="converged", why="good"
    )
    store.put(f"campaigns/{sample_ledger.NAME}/finished.json", last.model_dump_json().encode())
    assert call("resume", sample_ledger.NAME) == (
        2,
        "dpstream: told: the campaign has already ended (converged: good); to continue it, "
        "change its plan: dpstream run SPEC --amend (in a deployment: dpstream amend NAME SPEC)\n",
    )


def test_nothing_abandoned_nothing_to_retry(call: Call) -> None:
    sample_ledger.write_half(Path("runs"))
    assert call("retry", sample_ledger.NAME) == (
        2,
        "dpstream: told: no abandoned task can be retried\n",
    )


# ----------------------------------------------------------------------------------------- logs


def command(task: str = "abcdefgh-1") -> m.Label:
    ref = sample_ledger.Ref.to("x", b"x")
    return m.Label(
        id="c",
        campaign="told",
        time=0.0,
        task=task,
        title="label 3 frames",
        max_seconds=1.0,
        spec=ref,
        capability="tblite",
        recipe="r",
        frames=(),
    )


def failed(task: str = "abcdefgh-1", **fields: str) -> m.TaskFailed:
    given = {"reason": "it broke", "trace": "Traceback:\n  line 2", **fields}
    return m.TaskFailed(
        id="f", campaign="told", time=1.0, task=task, attempt=2, permanent=False, **given
    )


def test_a_failure_shows_its_task_and_its_trace() -> None:
    first, *trace = list(LedgerLines().of([command(), failed()]))[1:]
    assert first.endswith("task-failed          abcdefgh/2 label 3 frames: it broke")
    assert trace == ["        Traceback:", "          line 2"]


def test_only_the_task_that_was_asked_for() -> None:
    both = [command(), command("other"), failed("other"), failed()]
    assert len(list(LedgerLines("abc").of(both))) == 4
    paused = m.CampaignPaused(id="p", campaign="told", time=0.0, why="x")
    assert list(LedgerLines("abc").of([paused])) == []


def test_what_an_engine_printed_does_not_steer_the_terminal() -> None:
    hostile = failed(reason="\x1b[2J\x07red\u202e", trace="\x1b]0;title\x07")
    assert not set("\x1b\x07\u202e") & set("".join(LedgerLines().of([command(), hostile])))


# --------------------------------------------------------------------------------- looking on


@pytest.fixture
def harness(tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(FolderStore(tmp_path))


def followed(harness: CoordinatorHarness) -> FollowedCampaign:
    bus = InProcessBus(harness.bus.broker)  # type: ignore[attr-defined]
    return FollowedCampaign.open(harness.store, "world", bus)


def test_heartbeats_and_events_are_news(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UPDATE_SECONDS", 0.01)
    _, task = first_task(harness)
    seen = followed(harness)
    assert seen.goes_on()
    harness.publish(harness.world.answer(task)[0])
    harness.heartbeat(task)
    harness.step()
    while tasks_of(seen.reading.state)[task.task].status != "running":
        assert seen.goes_on()
    assert seen.progress == {task.task: "half way"}


def test_without_news_the_ledger_is_left_alone(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UPDATE_SECONDS", 0.01)
    harness.submit(small())
    seen, looks = followed(harness), list[int]()
    update = seen.reading.update
    monkeypatch.setattr(seen.reading, "update", lambda: looks.append(1) or update())
    for _ in range(10):
        seen.goes_on()
    assert len(looks) == 1


def test_a_watch_ends_with_its_campaign(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UPDATE_SECONDS", 0.01)
    harness.submit(small())
    seen, console = followed(harness), Console(record=True, width=200, force_terminal=False)
    working = threading.Thread(target=harness.finish)
    working.start()
    LiveView(lambda: seen.status, console, "").watch(seen.goes_on)
    working.join(timeout=10)
    assert seen.reading.state.finished is not None
    assert "committee 1" in console.export_text()


# ------------------------------------------------------------------------------------- saying


def test_a_request_is_taken_in_once_the_ledger_holds_it(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UPDATE_SECONDS", 0.01)
    harness.submit(small())
    pause = request(m.CampaignPaused, "world", why="x")
    publish(harness.bus, pause)
    assert once_taken_in(harness.store, pause, wait=0.0) is None
    state = once_taken_in(harness.store, pause, wait=10.0, meanwhile=harness.step)
    assert state is not None
    assert state.paused == "x"


def test_no_word_without_a_broker() -> None:
    with pytest.raises(SpecError, match="--broker: missing"):
        connection.open_bus(None)
