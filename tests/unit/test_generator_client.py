"""The client of generators at a queue that is full."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from dpstream.generators import client
from dpstream.generators.client import Generator
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.bus.topology import COORDINATOR, MOST_OFFERED, PROPOSALS
from dpstream.shared.errors import Rejected
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
    with pytest.raises(Rejected):
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
