"""Campaigns that release 0.1.0 wrote read the same in this release, in every command."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dpstream.export.checksums import CHECKSUMS
from dpstream.export.dataset_card import CARD
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    LedgerReader,
    load_state,
    read_messages,
    read_segments,
)
from dpstream.shared.messages import AuditDone, StructuresJudged
from tests.support.campaigns.release_0_1 import (
    NAMES,
    RENAMED_TAGS,
    OldCampaign,
    audit_facts,
    dataset_facts,
    figures,
    files_in,
    report_figures,
    state_facts,
    unpack,
)
from tests.support.command_line import run_command

CRASHED_BEFORE = {"README.txt", "report.html"} | {
    f"md-example/{name}" for name in ("in.lammps", "structure.data", "structure.extxyz")
}
"""Files of the export of `streaming-proposals` that release 0.1.0 failed to write."""
Call = Callable[..., str]


@pytest.fixture(scope="module", params=NAMES)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OldCampaign:
    return unpack(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def streaming(tmp_path: Path) -> OldCampaign:
    return unpack("streaming-proposals", tmp_path)


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """What a command prints about a campaign; it succeeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def called(campaign: OldCampaign, *words: str) -> str:
        line = (*words, campaign.name, "--root", campaign.root)
        status, out, err = run_command(monkeypatch, capsys, *line)
        assert status == 0, err
        return out

    return called


def test_the_ledger_leads_to_the_same_state(old: OldCampaign) -> None:
    assert state_facts(load_state(old.store, old.name)) == old.expected["state"]


def test_every_message_is_read(old: OldCampaign) -> None:
    segments = list(read_segments(old.store, old.name))
    messages = list(read_messages(old.store, old.name))
    assert len(segments) == old.expected["segments"]
    assert sum(len(segment.entries) for segment in segments) == old.expected["entries"]
    written = {RENAMED_TAGS.get(tag, tag): n for tag, n in old.expected["messages"].items()}
    assert Counter(message.type for message in messages) == written
    audits = [audit_facts(message) for message in messages if isinstance(message, AuditDone)]
    assert audits == old.expected["audits"]
    answers = [message for message in messages if isinstance(message, StructuresJudged)]
    verdicts = Counter(judged.verdict for answer in answers for judged in answer.verdicts)
    assert verdicts == old.expected["structures_judged"]


def test_the_ledger_holds_the_former_tag_of_an_event(old: OldCampaign) -> None:
    ledger = b"".join(old.store.get(key) for key in old.store.list(f"campaigns/{old.name}/ledger/"))
    assert ledger.count(b'"candidates-found/1"') == old.expected["messages"]["candidates-found/1"]
    assert b'"chunk-explored/1"' not in ledger


def test_snapshots_of_another_format_are_passed_over(old: OldCampaign) -> None:
    kept = old.store.list(f"campaigns/{old.name}/snapshots/")
    assert sorted(key.rsplit("/", 1)[1] for key in kept) == old.expected["snapshots"]
    assert snapshots.newest(old.store, old.name, lambda _: True) is None
    reader = LedgerReader.begin(old.store, old.name)
    reader.update()
    assert load_state(old.store, old.name) == reader.state


def test_a_ledger_of_another_release_is_opened_for_writing(tmp_path: Path) -> None:
    old = unpack("killed", tmp_path)
    ledger, state = Ledger.open(old.store, old.name)
    assert (ledger.epoch, ledger.seq) == (2, old.expected["segments"])
    assert ledger.orphans == ()
    assert state_facts(state) == old.expected["state"]


def test_status(old: OldCampaign, call: Call) -> None:
    """All figures that release 0.1.0 printed, in this order, and others between them."""
    printed = iter(figures(call(old, "status")).split())
    assert all(figure in printed for figure in old.expected["status"].split())


def test_logs(old: OldCampaign, call: Call) -> None:
    """Release 0.1.0 printed no details of what generators offered."""
    lines = call(old, "logs").splitlines()
    for line, expected in zip(lines, old.expected["logs"], strict=True):
        if " structures-" in line:
            assert figures(line).startswith(expected)
        else:
            assert figures(line) == expected


def test_why(old: OldCampaign, call: Call) -> None:
    assert len(old.expected["why"]) >= 3
    for key, expected in old.expected["why"].items():
        assert figures(call(old, "why", key)) == expected


@pytest.mark.slow
def test_export(old: OldCampaign, call: Call, tmp_path: Path) -> None:
    call(old, "export", "--output", "out")
    expected = {*old.expected["export"], CHECKSUMS, f"dataset/{CARD}"}
    if old.name == "streaming-proposals":
        assert not expected & CRASHED_BEFORE
        expected |= CRASHED_BEFORE
    assert files_in(tmp_path / "out") == expected
    assert dataset_facts(tmp_path / "out") == old.expected["dataset"]


def test_export_as_dp_gen_lays_it_out(call: Call, tmp_path: Path) -> None:
    old = unpack("dpgen-lockstep", tmp_path)
    call(old, "export", "--layout", "dpgen", "--output", "out")
    assert files_in(tmp_path / "out") == set(old.expected["export_dpgen"])


def test_report(old: OldCampaign, call: Call, tmp_path: Path) -> None:
    call(old, "report", "--output", "report.html")
    found = report_figures((tmp_path / "report.html").read_text())
    if old.name == "streaming-proposals":
        assert "report" not in old.expected, "release 0.1.0 failed to write it"
        assert len(found) > 20
    else:
        assert found == old.expected["report"]


def test_the_report_shows_screening(streaming: OldCampaign, call: Call, tmp_path: Path) -> None:
    call(streaming, "report", "--output", "report.html")
    page = (tmp_path / "report.html").read_text()
    tasks = {kind: counts["done"] for kind, counts in streaming.expected["state"]["tasks"].items()}
    assert page.count('class="k-screen"') == 1 + tasks["screen"], "the legend, and every task"
    explorers = re.search(r"<td>explorer</td>(?:<td[^>]*>\d+</td>){2}", page)
    assert explorers is not None
    assert f">{sum(tasks.values()) - tasks['train'] - tasks['label']}</td>" in explorers[0]
