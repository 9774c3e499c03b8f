"""Bytes from outside in an expendable process: whatever they do to it is a reason to refuse
them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.labeler.acceptance import Outcome
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.atoms.records import Record, pack, unpack
from dpstream.shared.errors import ParserFailed, Stopped
from dpstream.shared.runtime.child_process import Limits
from dpstream.shared.runtime.parser import MIB, Parser, Unreadable, limits_of
from tests.support.workers.worker import stop_after

pytestmark = pytest.mark.slow

LIMITS = Limits(seconds=1.0, memory=64 * MIB, file=MIB)


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parser]:
    parser = Parser("tests.support.workers.toy_parser", tmp_path_factory.mktemp("parser"))
    yield parser
    parser.close()


def refusal(parser: Parser, text: str) -> str:
    with pytest.raises(Unreadable) as refused:
        parser.read("read", text.encode(), {}, LIMITS)
    return str(refused.value)


def pid(parser: Parser) -> int:
    (record,) = parser.read("read", b"hello", {}, LIMITS)
    assert record.facts["word"] == "hello"
    return int(record.facts["pid"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("loop", "takes more than 1 s of processor time"),
        ("crash", "crashes its parser (SIGSEGV)"),
        ("leave", "cannot be parsed: read: ended with status 0"),
        ("memory 80000000", "needs more than 64 MiB of memory"),
        ("flood 2000000", "OSError: [Errno 27] File too large"),
        ("garbage {}", "the parser returned garbage"),
        ("garbage [[]]", "the parser returned garbage"),
        ("link /etc/passwd", "PermissionError"),
        ("link /dev/zero", "PermissionError"),
        ("nothing", "the parser returned garbage: no result"),
        ("blame", "RuntimeError: CUDA error: out of memory"),
    ],
)
def test_a_refusal_costs_the_fork_alone(parser: Parser, text: str, reason: str) -> None:
    before = pid(parser)
    assert reason in refusal(parser, text)
    assert pid(parser) == before == parser.child.pid
    assert sorted(path.name for path in parser.child.scratch.iterdir()) == ["engine.log"]


def test_a_file_to_parse_is_written_through_no_link(parser: Parser, tmp_path: Path) -> None:
    """Under bubblewrap a child can make links."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("whole")
    pid(parser)
    (parser.child.scratch / "source").symlink_to(elsewhere)
    pid(parser)
    assert elsewhere.read_text() == "whole"


def test_a_file_whose_parser_waits_is_tried_again_and_not_refused(
    parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.parser.WAITING_SECONDS", 0.5)
    monkeypatch.setattr("dpstream.shared.runtime.parser.WAITING_FACTOR", 0.5)
    before = pid(parser)
    with pytest.raises(ParserFailed, match="took longer than its time limit"):
        parser.read("read", b"wait", {}, LIMITS)
    monkeypatch.undo()
    assert pid(parser) != before


def test_a_file_whose_parser_is_killed_is_tried_again_and_not_refused(parser: Parser) -> None:
    before, trace = pid(parser), parser.child.scratch / "trace"
    (record,) = parser.read("read", f"once {trace}".encode(), {}, LIMITS)
    trace.unlink()
    assert record.facts["pid"] == parser.child.pid != before
    with pytest.raises(ParserFailed, match="was killed, probably because it ran out of memory"):
        parser.read("read", b"kill", {}, LIMITS)


def test_what_a_parser_prints_is_dropped(parser: Parser) -> None:
    assert parser.read("read", b"print 5000000", {}, LIMITS) == []
    assert (parser.child.scratch / "engine.log").stat().st_size == 0


def test_a_task_that_is_cancelled_ends_its_parser(parser: Parser) -> None:
    began = time.monotonic()
    limits = Limits(seconds=600.0, memory=MIB, file=MIB)
    with pytest.raises(Stopped):
        parser.read("read", b"loop", {}, limits, stop_after(0.1))
    assert time.monotonic() - began < 10
    assert parser.child.pid is None


def test_the_limits_follow_what_was_announced() -> None:
    one, many = limits_of(1, 500), limits_of(100, 50_000)
    assert one.seconds < 6 < many.seconds < 20
    assert one.memory < 260 * MIB < many.memory < 512 * MIB


def test_a_parser_that_cannot_start_is_the_workers_fault(tmp_path: Path) -> None:
    parser = Parser("tests.support.no_such_parser", tmp_path)
    with pytest.raises(ParserFailed, match="No module named"):
        parser.read("read", b"hello", {}, LIMITS)
    parser.close()


# --------------------------------------------------------------------------------------- records


def frame(cell: bool = True) -> Frame:
    return Frame(
        ("H", "Ä"),
        np.array([[0.1, -0.0, 1e-300], [1e8, np.nan, np.inf]]),
        np.eye(3) if cell else None,
        fparam=np.array([300.0]),
        aparam=np.ones((2, 0)),
    )


def test_frames_come_back_to_the_last_bit() -> None:
    sent = [Record.of_frame(frame(), note="a\nb"), Record({}), Record.of_frame(frame(cell=False))]
    one, nothing, other = unpack(pack(sent))
    assert (one.facts["note"], nothing.facts, nothing.arrays) == ("a\nb", {}, {})
    assert other.frame().cell is None
    back = one.frame()
    assert back.species == frame().species
    for name in ("positions", "cell", "fparam", "aparam"):
        assert getattr(back, name).tobytes() == getattr(frame(), name).tobytes()
        assert getattr(back, name).flags.writeable


ROW = {"facts": {}, "shapes": {"positions": [1, 3]}}


@pytest.mark.parametrize(
    "head",
    [
        {},
        [1],
        [{"facts": {}}],
        [{**ROW, "shapes": {"positions": [2, 3]}}],
        [{**ROW, "shapes": {"positions": [0, 3]}}],
        [{**ROW, "shapes": {"positions": [-1, -3]}}],
        [{**ROW, "shapes": {"positions": [True, 3]}}],
        [{**ROW, "shapes": {"positions": [1, 1, 1, 3]}}],
        [{**ROW, "shapes": {"positions": [10**30]}}],
        [{**ROW, "shapes": {"positions": "3"}}],
        [ROW, ROW],
    ],
)
def test_records_that_lie_are_no_records(head: Any) -> None:
    numbers = np.zeros(3).tobytes()
    assert len(unpack(json.dumps([ROW]).encode() + b"\n" + numbers)) == 1
    with pytest.raises(ValueError, match=r"records|numbers|shape"):
        unpack(json.dumps(head).encode() + b"\n" + numbers)


@given(st.binary(max_size=60), st.integers(0, 400))
def test_no_bytes_are_believed(patch: bytes, at: int) -> None:
    data = pack([Record.of_frame(frame())])
    try:
        for record in unpack(data[:at] + patch + data[at + len(patch) :]):
            record.frame()
    except ValueError:
        pass


# --------------------------------------------------------------------------------------- outcomes


GOOD = Outcome(energies=(-1.0,), forces=np.zeros((2, 3)), virial=np.eye(3), messages=("ok",))


def test_an_outcome_comes_back() -> None:
    back = Outcome.of(json.loads(json.dumps(GOOD.facts())))
    assert back.facts() == GOOD.facts()
    assert back.forces is not None
    assert back.forces.dtype == np.float64


@pytest.mark.parametrize(
    "changes",
    [
        {"forces": [[0.0], [1.0, 2.0]]},
        {"forces": [["a"]]},
        {"energies": "1"},
        {"energies": [None]},
        {"converged": "yes"},
        {"exit_status": 0.5},
        {"fault": 1},
        {"more": 1},
    ],
)
def test_an_outcome_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Outcome.of({**GOOD.facts(), **changes})
    with pytest.raises(ValueError, match=r"."):
        Outcome.of(None)
