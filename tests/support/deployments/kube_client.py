"""Submits a campaign, or waits for its end and checks it: in a pod, with what is in the
coordinator's image.

    python kube_client.py submit|check CAMPAIGN
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from dpstream.services.coordinator.ledger.ledger import read_messages, verdict
from dpstream.services.coordinator.views.frames import FrameHistory, History
from dpstream.shared.codec import decode, encode, topic_of
from dpstream.shared.connect import connect_bus, connect_store
from dpstream.shared.messages import LabelsDone
from dpstream.shared.ports import Outgoing, Store
from dpstream.shared.settings import Settings, read_settings
from dpstream.shared.values import is_offered

HERE = Path(__file__).parent


def submit(settings: Settings, store: Store) -> None:
    """What `dpstream submit` does once it has read the spec's files."""
    for key, data in json.loads((HERE / "inputs.json").read_text()).items():
        store.create(key, base64.b64decode(data))
    event = decode((HERE / "event.json").read_bytes())
    with closing(connect_bus(settings)) as bus:
        bus.publish([Outgoing(encode(event), topic=topic_of(event))])


def check(store: Store, campaign: str) -> None:
    """Fails unless the campaign converges, no label was computed twice and one at least is of a
    frame that the generator offered."""
    while (finished := verdict(store, campaign)) is None:
        time.sleep(1)
    messages = list(read_messages(store, campaign))
    labelled = [frame for frame in History.of(messages).lives.values() if frame.accepted]
    offered = [frame for frame in labelled if _is_offered(frame)]
    computed = Counter(
        accepted.key
        for done in messages
        if isinstance(done, LabelsDone)
        for accepted in done.accepted
        if not accepted.reused
    )
    print(f"{finished.describe()}; {len(labelled)} labels, {len(offered)} of offered frames")
    assert finished.verdict == "converged"
    assert offered
    assert max(computed.values()) == 1
    assert len(computed) == len(labelled)


def _is_offered(frame: FrameHistory) -> bool:
    return frame.purpose == "proposed" or (
        frame.chosen is not None and is_offered(frame.chosen.trajectory)
    )


if __name__ == "__main__":
    given = read_settings(Settings)
    match sys.argv[1:]:
        case ["submit", _]:
            submit(given, connect_store(given))
        case ["check", name]:
            check(connect_store(given), name)
