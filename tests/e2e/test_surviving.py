"""Killed at random and started again, a campaign ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.messages import LabelsDone
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.small_campaign import (
    children_of,
    finish,
    kill_tree,
    labelled,
    start,
    state_of,
    wait_until,
    write_spec,
)

KILLS, ENGINES = 10, 4


@pytest.mark.soak
def test_whatever_ends_it_the_same_command_labels_the_same_frames(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Ctrl-C, then SIGKILLs, then engines that are killed under it until the end."""
    spec, root, rng = write_spec(tmp_path), tmp_path / "root", random.Random(7)
    print(f"{KILLS} kills")
    _interrupt(spec, root)
    kills = 0
    while kills < KILLS:
        process = start(spec, root)
        time.sleep(rng.uniform(2.0, 20.0))
        if process.poll() is not None:
            break
        kill_tree(process)
        kills += 1
    killed = _finish_on_dying_engines(start(spec, root), rng)
    assert kills >= 1
    assert killed or kills < KILLS, "there was no engine to kill"
    assert labelled(state_of(root)) == labelled(state_of(undisturbed))
    assert _computed_twice(root) == []


def _interrupt(spec: Path, root: Path) -> None:
    process = start(spec, root)
    wait_until(lambda: (root / "campaigns/small/ledger").exists() and _labels(root) >= 6)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "run the same command to continue" in output
    assert not children_of(process.pid)


def _labels(root: Path) -> int:
    return len(labelled(state_of(root)))


def _finish_on_dying_engines(process: subprocess.Popen[str], rng: random.Random) -> int:
    """How many engines were killed: each costs an attempt, no more."""
    killed = 0
    while process.poll() is None and killed < ENGINES:
        time.sleep(rng.uniform(6.0, 9.0))
        children = children_of(process.pid)
        if children:
            os.kill(rng.choice(children), signal.SIGKILL)
            killed += 1
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return killed


def _computed_twice(root: Path) -> list[str]:
    """Frames whose label was computed more than once."""
    computed = [
        accepted.key
        for message in read_messages(FolderStore(root), "small")
        if isinstance(message, LabelsDone)
        for accepted in message.accepted
        if not accepted.reused
    ]
    return [key for key in computed if computed.count(key) > 1]


@pytest.mark.soak
def test_a_second_campaign_reuses_every_label(undisturbed: Path, tmp_path: Path) -> None:
    output = finish(write_spec(tmp_path), undisturbed, "--name", "second")
    second = state_of(undisturbed, "second")
    assert labelled(second) == labelled(state_of(undisturbed))
    assert second.labels.reused == len(labelled(second))
    assert f"{second.labels.reused} reused" in output
