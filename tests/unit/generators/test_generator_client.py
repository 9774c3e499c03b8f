"""The client of generators at a queue that is full."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from dpstream.generators import client
from dpstream.generators.client import Generator
from dpstream.generators.watch_folder import WatchedFolder
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.bus.topology import COORDINATOR, MOST_OFFERED, PROPOSALS
from dpstream.shared.errors import QueueFull
from dpstream.shared.ports import Outgoing
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri


def test_a_generator_waits_while_the_queue_of_proposals_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    store, bus = FolderStore(tmp_path), InProcessBus()
    store.put(campaign_uri("world", "spec.json"), b"{}")
    generator = Generator(bus, store, "world", "ga")
    another = Outgoing(b"{}", topic="world.structures-proposed")
    bus.publish([another] * MOST_OFFERED)
    with pytest.raises(QueueFull):
        bus.publish([another])
    bus.publish([Outgoing(b"{}", topic="world.labels-done")])  # no other event waits behind them
    frame = Frame(("H",), np.zeros((1, 3)))
    offering = threading.Thread(target=generator.propose, args=([frame],))
    with capture_logs() as logged:
        offering.start()
        offering.join(timeout=0.2)
        assert offering.is_alive()
        taken = bus.consume(PROPOSALS).next(timeout=1.0)
        assert taken is not None
        offering.join(timeout=10.0)
    assert not offering.is_alive()
    assert bus.depth(PROPOSALS) == MOST_OFFERED
    assert bus.depth(COORDINATOR) == 1
    assert {line["event"] for line in logged} == {"the queue of proposals is full, trying again"}


def test_a_watched_folder_passes_hidden_files_over_and_follows_links(tmp_path: Path) -> None:
    store, bus = FolderStore(tmp_path / "store"), InProcessBus()
    store.put(campaign_uri("world", "spec.json"), b"{}")
    folder, elsewhere = tmp_path / "watched", tmp_path / "elsewhere"
    for place in (folder / ".ipynb_checkpoints", folder / "run", elsewhere):
        place.mkdir(parents=True)
    for number, place in enumerate((folder / ".ipynb_checkpoints", folder / "run", elsewhere)):
        (place / "a.xyz").write_text(f"1\n\nH 0 0 {number}\n")
    (folder / "run" / "._a.xyz").write_text("1\n\nH 0 0 9\n")
    (folder / "link").symlink_to(elsewhere)
    (folder / "run" / "back").symlink_to(folder)
    watch = WatchedFolder(folder, Generator(bus, store, "world", "ga"), lambda said: None)
    assert [watch.look(), watch.look()] == [0, 2]
