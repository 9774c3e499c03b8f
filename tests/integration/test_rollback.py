"""The way back to release 0.1.0, as in docs/upgrading.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger.ledger import Ledger, LedgerEntry, load_state
from dpstream.shared import messages as m
from tests.support.campaigns.release_0_1 import OldCampaign, state_facts, unpack
from tests.support.deployments.installed_release import install, run


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("release"))


def status_by(release: Path, campaign: OldCampaign) -> tuple[int, str]:
    done = run(release, "-m", "dpstream", "status", campaign.name, "--root", campaign.root)
    return done.returncode, done.stdout + done.stderr


def decided(campaign: OldCampaign) -> list[str]:
    folders = (f"campaigns/{campaign.name}/{each}/" for each in ("manifests", "committees"))
    return [key for folder in folders for key in campaign.store.list(folder)]


def written_at(campaign: OldCampaign, key: str) -> int:
    """As a listing of the bucket shows it."""
    return (campaign.root / key).stat().st_mtime_ns


@pytest.mark.soak
def test_back_before_the_first_segment_and_after_it(release: Path, tmp_path: Path) -> None:
    assert run(release, "-m", "dpstream", "--version").stdout.strip() == "dpstream 0.1.0"
    old = unpack("killed", tmp_path)
    ledger, state = Ledger.open(old.store, old.name)  # takes an epoch, and writes nothing else
    before = status_by(release, old)
    assert before[0] == 0

    ends = ledger.seq
    task = next(task for task in state.tasks.values() if task.status == "open")
    claim = m.TaskClaimed(
        id="1", campaign=old.name, time=1.0, task=task.command.task, attempt=1, worker="newer"
    )
    manifests = decided(old)
    ledger.append([LedgerEntry(claim)])
    ledger.write_head()
    another = f"campaigns/{old.name}/manifests/dataset-9.json"
    assert old.store.create(another, b"decided by 0.2.0")
    status, printed = status_by(release, old)
    assert status == 2
    assert f"{ends + 1:08d}-000002.json" in printed
    assert len(printed.strip().splitlines()) == 1

    chain = verify(old.store, old.name).ledger.chain
    found = re.search(r"chained from segment (\d+) on", chain)
    assert found is not None
    last = int(found[1])
    assert last == ends
    first_newer = written_at(old, f"campaigns/{old.name}/ledger/{last + 1:08d}-000002.json")
    for key in decided(old):
        if written_at(old, key) >= first_newer:
            old.store.delete(key)
    for key in list(old.store.list(f"campaigns/{old.name}/")):
        newer = re.search(r"/(?:ledger|heads)/(\d{8})-", key)
        if newer is not None and int(newer[1]) > last:
            old.store.delete(key)
    assert decided(old) == manifests
    assert old.store.create(another, b"decided anew by 0.1.0")
    old.store.delete(another)
    assert status_by(release, old) == before
    assert state_facts(load_state(old.store, old.name)) == old.expected["state"]


@pytest.mark.soak
def test_a_segment_that_0_1_0_can_read_may_be_followed_by_one_of_its_own(
    release: Path, tmp_path: Path
) -> None:
    old = unpack("killed", tmp_path)
    ledger, _ = Ledger.open(old.store, old.name)
    pause = m.CampaignPaused(id="1", campaign=old.name, time=1.0, why="upgraded")
    ledger.append([LedgerEntry(pause)])
    code = (
        "from pathlib import Path; import sys\n"
        "from services.coordinator.ledger import Ledger, Entry\n"
        "from shared.folder_store import FolderStore\n"
        "from shared import messages as m\n"
        "ledger, _ = Ledger.open(FolderStore(Path(sys.argv[1])), 'killed')\n"
        "resumed = m.CampaignResumed(id='2', campaign='killed', time=2.0)\n"
        "ledger.append([Entry(resumed)])\n"
    )
    done = run(release, "-c", code, old.root)
    assert done.returncode == 0, done.stderr
    again, state = Ledger.open(old.store, old.name)
    assert state.paused is None
    again.append([LedgerEntry(pause.model_copy(update={"id": "3"}))])
    found = verify(old.store, old.name)
    assert found.damage == []
    assert f"chained from segment {again.seq - 1} on" in found.ledger.chain
