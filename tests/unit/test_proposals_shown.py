"""A campaign to which structures were proposed, in everything that shows a campaign."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from rich.console import Console, RenderableType

from dpstream.export.folder import export
from dpstream.report.page import render
from dpstream.services.coordinator.http.api import make_app
from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.coordinator.views.why import why
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.store.folder import FolderStore
from dpstream.terminal.ledger_lines import LedgerLines
from dpstream.terminal.status import screen, summary
from tests.support.campaigns import sample_ledger


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return sample_ledger.write_with_proposals(tmp_path / "root")


def shown(what: RenderableType) -> dict[str, str]:
    """The printed lines, by their first word."""
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(what)
    return {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}


def test_the_report_draws_the_screening(store: FolderStore) -> None:
    html = render(store, sample_ledger.NAME)
    assert 'class="k-screen"' in html
    assert "<title>screen: " in html
    assert ".k-screen {" in html


def test_the_export_is_whole(store: FolderStore, tmp_path: Path) -> None:
    export(store, sample_ledger.NAME, tmp_path / "out")
    assert (tmp_path / "out" / "README.txt").exists()
    assert 'class="k-screen"' in (tmp_path / "out" / "report.html").read_text()


def test_status_and_watch_count_a_running_screen_as_the_explorers_work(store: FolderStore) -> None:
    status = CampaignView.read(store, sample_ledger.NAME).status
    for view in (summary(status), screen(status, 1.0, "Ctrl-C stops")):
        assert shown(view)["explorer"].split() == ["explorer", "1", "0", "screen"]


def test_logs_say_what_was_proposed_and_found(store: FolderStore) -> None:
    lines = list(LedgerLines().of(read_messages(store, sample_ledger.NAME)))
    (first, _) = (line for line in lines if "structures-proposed" in line)
    assert first.endswith(" ga, offer-0: 1 to screen")
    (screened,) = (line for line in lines if "structures-screened" in line)
    assert screened.endswith("screen: 1 accurate")
    (judged,) = (line for line in lines if "structures-judged" in line)
    assert judged.endswith(" ga, offer-0: 1 accurate")


def test_why_names_the_generator(store: FolderStore) -> None:
    lines = "\n".join(why(store, sample_ledger.NAME, sample_ledger.KEYS[sample_ledger.PASSED_OVER]))
    assert "generator ga, frame 0 of offer-0: accurate by committee 1" in lines


def test_the_api_the_metrics_and_the_dashboard(store: FolderStore) -> None:
    coordinator = Coordinator(InProcessBus(), store)
    coordinator.open(sample_ledger.NAME)
    read_access = ReadAccess(coordinator)
    client = TestClient(
        make_app(read_access, CoordinatorMetrics(read_access), None), base_url="http://127.0.0.1"
    )

    def get(path: str) -> Any:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return answer

    assert get("/campaigns/told").json()["tasks"]["screen"] == {"done": 1, "running": 1}
    lines = get("/campaigns/told/tasks?kind=screen").json()
    assert [line["status"] for line in lines] == ["running", "done"], "those of the state first"
    metrics = get("/metrics").text
    assert 'dpstream_tasks{campaign="told",kind="screen",status="running"} 1.0' in metrics
    assert get("/").text.startswith("<!doctype html>")
