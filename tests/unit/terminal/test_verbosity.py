"""`--quiet` and `--verbose`, before a command or after it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from dpstream.commands.app import command
from dpstream.commands.read_spec import prepared
from dpstream.shared.logs import logger
from dpstream.terminal.console import console, notes, print_line
from dpstream.terminal.interrupt import signals
from dpstream.terminal.live import LiveView
from dpstream.terminal.log_file import LogFile
from dpstream.terminal.plan import introduce
from dpstream.terminal.verbosity import Verbosity
from tests.support.campaigns import sample_ledger
from tests.support.command_line import run_command

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    config = structlog.get_config()
    yield
    structlog.configure(**config)
    notes.quiet = Verbosity.logs = False


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    sample_ledger.write_sample(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return lambda *words: run_command(monkeypatch, capsys, *words)


def leaves(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for word, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from leaves(each, f"{name}{word} ")
        else:
            yield f"{name}{word}", each


@pytest.mark.parametrize(("name", "leaf"), list(leaves(command)), ids=str)
def test_every_command_has_both_and_no_other_use_for_their_letters(name: str, leaf: Any) -> None:
    given = [text for option in leaf.params for text in option.opts]
    for text in ("-q", "--quiet", "-v", "--verbose"):
        assert given.count(text) == 1


@pytest.mark.parametrize("words", [("-q", "verify"), ("verify", "--quiet"), ("-v", "verify", "-q")])
def test_quiet_leaves_the_result(call: Call, words: tuple[str, ...]) -> None:
    assert call(*words) == (0, f"{sample_ledger.NAME}: no damage\n", "")


def test_quiet_is_for_one_call(call: Call) -> None:
    call("verify", "-q")
    assert "objects: " in call("verify")[1]


def test_damage_is_printed_with_quiet(call: Call, tmp_path: Path) -> None:
    (model,) = (tmp_path / "runs").rglob("train-0-frozen.pb")
    model.write_bytes(b"other bytes")
    status, out, _ = call("verify", "-q")
    assert (status, out.splitlines()[0][:9]) == (1, "damaged: ")


@pytest.mark.slow
def test_warnings_are_printed_with_quiet(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    water = Path(__file__).parents[3] / "examples" / "water" / "campaign.yaml"
    assert "\nwarning: systems.water: Gamma point only" in call("validate", str(water))[1]
    spec, gathered, recipe = prepared(water, None, None)
    notes.quiet = True
    introduce(console, spec, gathered, recipe)
    lines = [f"warning: {warning}" for warning in gathered.warnings]
    assert capsys.readouterr().out.splitlines() == lines


def test_the_next_step_is_no_result(call: Call) -> None:
    assert "next: " in call("new", "one", "--elements", "Cu")[1]
    out = call("new", "two", "--elements", "Cu", "-q")[1]
    assert (out.count("\n"), "wrote " in out) == (1, True)


def test_log_lines_of_the_services_go_to_the_file_and_to_standard_error(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("-v", "list")
    with LogFile(tmp_path / "run.log"):
        logger().info("task done", task="train-1")
    logger().info("outside of a run")
    err = capsys.readouterr().err.splitlines()
    assert ["task done" in err[0], "outside of a run" in err[1]] == [True, True]
    assert "task='train-1'" in (tmp_path / "run.log").read_text()
    assert "outside" not in (tmp_path / "run.log").read_text()


def test_without_verbose_log_lines_go_to_the_file_alone(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("list")
    with LogFile(tmp_path / "run.log"):
        logger().info("task done", task="train-1")
    assert capsys.readouterr().err == ""


def test_a_quiet_view_waits_for_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    def never() -> Any:
        raise AssertionError("nothing is shown")

    notes.quiet = True
    turns = iter([True, True, False])
    LiveView(never, notes, "Ctrl-C").watch(lambda: next(turns))
    assert capsys.readouterr().out == ""


def test_a_closed_terminal_silences_both(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with signals(console) as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked.wait(10)
            print_line(console, "a result")
            print_line(notes, "a remark")
    finally:
        console.quiet = False
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().out == ""
