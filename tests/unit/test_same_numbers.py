"""Status, API, metrics, report and export show the same numbers of the same campaign."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from dpstream.export.results import CampaignResults
from dpstream.report.page import render
from dpstream.services.coordinator.http.api import make_app
from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.ledger.ledger import campaigns
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.store.folder import FolderStore
from dpstream.terminal.status import summary
from tests.support.campaigns import sample_ledger
from tests.support.campaigns.campaign_simulator import CampaignSimulator
from tests.support.campaigns.coordinator import CoordinatorHarness, small

pytestmark = pytest.mark.usefixtures("no_log_lines")


def with_an_abandoned_label_task(root: Path) -> FolderStore:
    """A campaign with frames that count as rejected although no label of theirs was."""
    writer = sample_ledger.LedgerWriter(root)
    writer.beginning()
    writer.training()
    writer.selection()
    chosen = [writer.frame_ref(number) for number in (sample_ledger.TRAINED, sample_ledger.AUDITED)]
    fields = {
        "capability": "tblite",
        "recipe": sample_ledger.RECIPE.digest,
        "frames": tuple(chosen),
    }
    writer.work(m.Label, "label-2", "labeler-0", **fields)
    writer.record(m.TaskFailed, task="label-2", permanent=True, reason="no memory")
    writer.record(m.TaskAbandoned, task="label-2", title="label", why="after 1 attempt: no memory")
    return writer.write()


def simulated(root: Path) -> FolderStore:
    """A whole campaign, some labels of which are rejected."""
    harness = CoordinatorHarness(
        FolderStore(root), world=CampaignSimulator(reject=lambda key: key[0] in "01")
    )
    harness.submit(small())
    assert harness.finish().finished is not None
    return FolderStore(root)


def simulated_so_far(root: Path) -> FolderStore:
    """A campaign whose first audit is done."""
    harness = CoordinatorHarness(FolderStore(root))
    campaign = harness.submit(small())
    while campaign.state.exploration.stage.audit is None:
        harness.work()
        harness.step()
    return FolderStore(root)


CAMPAIGNS = (
    sample_ledger.write_beginning,
    sample_ledger.write_half,
    sample_ledger.write_sample,
    sample_ledger.write_with_proposals,
    with_an_abandoned_label_task,
    simulated,
    simulated_so_far,
)


class Shown:
    """What each of them shows."""

    def __init__(self, store: FolderStore) -> None:
        (name,) = campaigns(store)
        self.status = self._printed(CampaignView.read(store, name))
        self.report = render(store, name)
        self.results = CampaignResults.of(store, name)
        coordinator = Coordinator(InProcessBus(), store)
        coordinator.open(name)
        access = ReadAccess(coordinator)
        app = make_app(access, CoordinatorMetrics(access), None)
        client = TestClient(app, base_url="http://127.0.0.1")
        self.api: Any = client.get(f"/campaigns/{name}").json()
        self.metrics = client.get("/metrics").text

    @staticmethod
    def _printed(view: CampaignView) -> str:
        console = Console(width=200, file=io.StringIO(), record=True)
        console.print(summary(view.status))
        return console.export_text()


@pytest.fixture(scope="module", params=CAMPAIGNS, ids=lambda write: write.__name__)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    write: Callable[[Path], FolderStore] = request.param
    return Shown(write(tmp_path_factory.mktemp("root")))


def numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern.replace("#", r"(\d+)"), text)
    assert found, pattern
    return [int(number) for number in found.groups()]


def test_labels(shown: Shown) -> None:
    in_status = r"# done \(# reused, # for the audit\), # rejected, # waiting"
    done, reused, audits, rejected, pending = numbers(in_status, shown.status)
    assert shown.api["labels"] == {
        "labelled": done,
        "reused": reused,
        "audits": audits,
        "rejected": rejected,
        "pending": pending,
    }
    in_report = (
        r"# labels of # frames asked for: # initial, # chosen for training, # for the audit. "
        r"# were computed, # found in the store. # rejected."
    )
    accepted, asked, initial, train, *rest = numbers(in_report, shown.report)
    assert (accepted, rest) == (done, [audits, done - reused, reused, rejected])
    assert asked == done + rejected + pending
    for status, count in shown.api["labels"].items():
        name = shown.api["name"]
        assert f'dpstream_labels{{campaign="{name}",status="{status}"}} {count}.0' in shown.metrics
    frames = [f for f in shown.results.history.lives.values() if f.accepted is not None]
    assert len(frames) == done
    assert sum(f.purpose == "audit" for f in frames) == audits
    assert sum(f.is_for_training for f in frames) == done - audits == initial + train


def test_errors_of_the_newest_committee(shown: Shown) -> None:
    members, version = shown.results.committee, shown.api["version"]
    assert [member.version for member in members] == [version] * len(members)
    if not version:
        assert "nothing trained yet" in shown.status
        assert shown.api["errors"] == []
        return
    assert len(members) == shown.results.spec.training.members
    forces = [member.train.force for member in members]
    assert f"committee {version}: train {fmean(forces):.4f}" in shown.status
    assert f"committee {version}: training {fmean(forces):.4g} eV/Å" in shown.report
    assert f"<td>{version}.{members[-1].member}</td>" in shown.report
    if shown.api["training"] is None:  # while the next committee trains, the API has its members
        assert [error["train"] for error in shown.api["errors"]] == forces


@pytest.mark.slow
def test_the_final_model(shown: Shown) -> None:
    final = shown.results.final
    assert ("final model: train" in shown.status) is (final is not None)
    assert ("<td>final</td>" in shown.report) is (final is not None)
    if final is not None:
        assert f"final model: train {final.train.force:.4f}" in shown.status
        assert f"final model: training {final.train.force:.4g} eV/Å" in shown.report


def test_the_running_round(shown: Shown) -> None:
    total = sum(sum(counts.values()) for counts in shown.api["shares"].values())
    assert (f"failed of {total}" in shown.status) is (total > 0 and shown.api["stage"] is not None)
    bars = re.findall(r"the running round: \d+ of (\d+) (\w+)", shown.report)
    drawn = {(int(of), kind) for of, kind in bars}
    expected = {
        (sum(counts.values()), kind)
        for counts in shown.api["shares"].values()
        for kind, count in counts.items()
        if count
    }
    assert drawn == expected


def test_where_it_stands(shown: Shown) -> None:
    assert shown.status.startswith(f"{shown.api['name']}: {shown.api['headline']}")
    if shown.api["verdict"] is not None:
        assert shown.api["verdict"].replace("-", " ") in shown.report
        assert shown.api["why"] in shown.report
    for stage in shown.api["ended"]:
        assert f"{stage['name']} {stage['verdict']}" in shown.status
        assert f"<td>{stage['verdict']}</td>" in shown.report
    assert len(shown.api["ended"]) == shown.api["stages_over"]
