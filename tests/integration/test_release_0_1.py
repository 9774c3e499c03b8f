"""A campaign that release 0.1.0 began, and that was killed there, goes on in this release."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import read_messages, read_segments
from dpstream.shared.messages import LabelsDone
from tests.support.campaigns.archived import frames_of, whole_state
from tests.support.campaigns.release_0_1 import OldCampaign, unpack
from tests.support.campaigns.small_campaign import finish, start, wait_until
from tests.support.command_line import run_command
from tests.support.soak import SOAK


@pytest.mark.slow
def test_a_killed_campaign_goes_on(tmp_path: Path) -> None:
    """In `make soak` to its end, else until its next labels."""
    old = unpack("killed", tmp_path)
    ledger, labels = contents(old, "campaigns/killed/ledger/"), contents(old, "labels/")
    before = whole_state(old.store, old.name)
    spec = old.folder / "campaign.yaml"

    output = finish(spec, old.root) if SOAK else begin(spec, old)

    assert "killed: resumed: stage warm (2 of 2)" in output
    state = whole_state(old.store, old.name)
    assert state.labels.reused == 0
    assert set(frames_of(before)) <= set(frames_of(state))
    done = {key for key, frame in frames_of(state).items() if frame.status == "labelled"}
    assert computed(old) == dict.fromkeys(done, 1)
    assert contents(old, "labels/").items() >= labels.items()
    assert contents(old, "campaigns/killed/ledger/").items() >= ledger.items()
    epochs = epochs_of(old)
    written = old.expected["segments"]
    assert set(epochs[:written]) == {1}
    assert set(epochs[written:]) == {2}
    if SOAK:
        assert "14 labels" in output
        assert [end.verdict for end in state.exploration.ended] == ["converged", "converged"]
        assert state.final.model is not None
        assert done == set(frames_of(state))


def begin(spec: Path, old: OldCampaign) -> str:
    """Run it until it has more labels, and interrupt it."""
    known = len(computed(old))
    process = start(spec, old.root)
    wait_until(lambda: len(computed(old)) > known)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    return output


def computed(campaign: OldCampaign) -> Counter[str]:
    """How often the label of each frame was computed."""
    return Counter(
        accepted.key
        for message in read_messages(campaign.store, campaign.name)
        if isinstance(message, LabelsDone)
        for accepted in message.accepted
    )


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
