"""A campaign that release 0.1.0 began, and that was killed there, ends in this release."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import read_messages, read_segments
from dpstream.shared.messages import LabelsDone
from tests.support.campaigns.archived import frames_of, whole_state
from tests.support.campaigns.release_0_1 import OldCampaign, unpack
from tests.support.campaigns.small_campaign import finish
from tests.support.command_line import run_command


@pytest.mark.slow
def test_a_killed_campaign_goes_on_to_its_end(tmp_path: Path) -> None:
    old = unpack("killed", tmp_path)
    ledger, labels = contents(old, "campaigns/killed/ledger/"), contents(old, "labels/")
    before = whole_state(old.store, old.name)

    output = finish(old.folder / "campaign.yaml", old.root)

    assert "killed: resumed: stage warm (2 of 2)" in output
    assert "14 labels" in output
    state = whole_state(old.store, old.name)
    assert [end.verdict for end in state.exploration.ended] == ["converged", "converged"]
    assert state.final.model is not None
    assert state.labels.reused == 0
    assert set(frames_of(before)) <= set(frames_of(state))
    assert {frame.status for frame in frames_of(state).values()} == {"labelled"}
    computed = Counter(
        accepted.key
        for message in read_messages(old.store, old.name)
        if isinstance(message, LabelsDone)
        for accepted in message.accepted
    )
    assert computed == dict.fromkeys(frames_of(state), 1)
    assert contents(old, "labels/").items() >= labels.items()
    assert contents(old, "campaigns/killed/ledger/").items() >= ledger.items()
    epochs = epochs_of(old)
    written = old.expected["segments"]
    assert set(epochs[:written]) == {1}
    assert set(epochs[written:]) == {2}


@pytest.mark.slow
def test_a_campaign_of_dp_gens_files_is_still_that_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their jobs are drawn otherwise now, and a default has changed; the campaign keeps its own."""
    old = unpack("dpgen-lockstep", tmp_path)
    monkeypatch.chdir(old.folder)
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", "")
    words = ("run", "param.json", "machine.json", "--code", "tblite", "--name", old.name)
    status, out, err = run_command(monkeypatch, capsys, *words, "--root", "root")
    assert (status, err) == (1, "")
    assert "not-converged: stage job-000 was explored once" in " ".join(out.split())


def epochs_of(campaign: OldCampaign) -> list[int]:
    return [segment.epoch for segment in read_segments(campaign.store, campaign.name)]


def contents(campaign: OldCampaign, prefix: str) -> dict[str, bytes]:
    return {key: campaign.store.get(key) for key in campaign.store.list(prefix)}
