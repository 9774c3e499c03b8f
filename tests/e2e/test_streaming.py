"""Without barriers: labels begin while trajectories still run, and none dominates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.messages import ChunkExplored, Explore, Label, Message, TaskClaimed
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.small_campaign import WARM, finish, state_of, write_spec

STREAMING = {
    "mode": "streaming",
    "md": {"timestep": 0.0005, "steps": 2000, "every": 10, "trajectories": 3, "chunk": 20},
    "selection": {"per_round": 6, "per_trajectory": 2, "min_separation": 0.02, "select_every": 4},
    "trust": {"low": 0.05, "high": 100.0},
    "audit": {"per_round": 0},
    "stages": [WARM],
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Message]]:
    folder = tmp_path_factory.mktemp("streaming")
    root = folder / "root"
    finish(write_spec(folder, **STREAMING), root)
    return root, list(read_messages(FolderStore(root), "small"))


@pytest.mark.soak
def test_labels_start_before_the_first_trajectory_ends(
    messages: tuple[Path, list[Message]],
) -> None:
    _, heard = messages
    explored = {m.task for m in heard if isinstance(m, Explore)}
    chosen_labels = {
        m.task for m in heard if isinstance(m, Label) and m.time > _first(heard, explored)
    }
    first_label = min(
        m.time for m in heard if isinstance(m, TaskClaimed) and m.task in chosen_labels
    )
    first_end = min(m.time for m in heard if isinstance(m, ChunkExplored) and m.last)
    assert first_label < first_end


def _first(heard: list[Message], explored: set[str]) -> float:
    return min(m.time for m in heard if isinstance(m, TaskClaimed) and m.task in explored)


@pytest.mark.soak
def test_no_trajectory_dominates_the_labels(messages: tuple[Path, list[Message]]) -> None:
    root, _ = messages
    frames = [f for f in frames_of(state_of(root)).values() if f.purpose == "train"]
    per_version = Counter((frame.origin, frame.version) for frame in frames)
    assert max(per_version.values()) <= STREAMING["selection"]["per_trajectory"]  # type: ignore[index]
    assert len({frame.origin for frame in frames}) > 1
