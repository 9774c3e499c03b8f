"""Whatever comes over the bus: nothing crashes, and nothing is written where it should not be.

Every kind of message is drawn from its fields, then mutated as JSON and as bytes, and given to the
decoder, to a coordinator in the middle of a campaign, and to a worker that takes it off its queue.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.bus.topology import COORDINATOR, PROPOSALS, matches
from dpstream.shared.codec import decode, encode
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.store.dead_letters import DeadLetter, bury
from dpstream.shared.values import campaign_uri, is_key
from tests.support.adapters.recording_store import RecordingStore
from tests.support.campaigns.campaign_simulator import spec, submission
from tests.support.campaigns.random_messages import EVERY, JSON, instances
from tests.support.soak import SOAK

INPUTS = 20_000 if SOAK else 500
PER_KIND = -(-INPUTS // len(EVERY))
CAMPAIGN = "world"
NASTY = st.sampled_from(
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        "campaigns/world/../../x",
        ".",
        "..",
        "",
        "\x00",
        "world\n",
        "wörld",
        "world\u202e",
        "\ud800",
        "$(id)",
        "x" * 600,
        "world/claims",
    ]
)
"""What somebody might put where a name or a key belongs."""


def topic_of(body: bytes) -> str:
    """The topic that a body belongs under, as far as it names one."""
    try:
        document = json.loads(body)
        topic = f"{document['campaign']}.{document['type'].partition('/')[0]}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{CAMPAIGN}.fuzz"
    return topic if matches("*.*", topic) else f"{CAMPAIGN}.fuzz"


class Target:
    """A coordinator with a campaign that has begun, and a worker of all trades beside it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.begin()

    def begin(self) -> None:
        """A fresh campaign."""
        self.store, self.bus = RecordingStore(), InProcessBus(Broker())
        key = campaign_uri(CAMPAIGN, "spec.json")
        self.store.objects[key] = spec().model_dump_json().encode()
        self.coordinator = Coordinator(self.bus, self.store, clock=lambda: 1e9)
        kinds = [kind for kind in EVERY if issubclass(kind, m.Command)]
        self.worker: Worker[None] = Worker(
            "worker",
            self.bus,
            self.store,
            "train",
            dict.fromkeys(kinds, _handled),
            None,
            self.scratch,
        )
        queues = (COORDINATOR, PROPOSALS)
        self.subscriptions = [self.bus.consume(queue, prefetch=1000) for queue in queues]
        self.say(encode(submission(spec())))
        assert self.state.submitted is not None
        self.tasks = tuple(self.state.tasks)

    @property
    def state(self) -> State:
        return self.coordinator.open_campaigns[CAMPAIGN].state

    def say(self, body: bytes) -> None:
        """To the coordinator, which then does all that the clock asks for."""
        self.bus.publish([Outgoing(body, topic=topic_of(body))])
        for subscription in self.subscriptions:
            while (delivery := subscription.next(0.0)) is not None:
                self.coordinator.receive([delivery])
        self.coordinator.check_clock()

    def order(self, body: bytes) -> None:
        """To the worker: taken, claimed, worked on, answered."""
        self.bus.publish([Outgoing(body, queue="train")])
        command = self.worker._take("train")
        if command is not None:
            self.worker._work_on(command)

    def check(self) -> None:
        """Keys inside the store, in the folders that are a coordinator's or a worker's to write."""
        for key in self.store.written:
            assert is_key(key), key
            top, _, rest = key.partition("/")
            assert top in ("campaigns", "deadletters"), key
            if top == "campaigns":
                inner = rest.split("/")[1]
                assert inner in FOLDERS, key
        self.store.written.clear()


FOLDERS = {
    "claims",
    "epoch",
    "finished.json",
    "heads",
    "ledger",
    "manifests",
    "parked",
    "results",
    "snapshots",
}


def _handled(resources: None, command: Any, context: Context) -> m.Result:
    context.put("result", b"x")
    return m.AuditDone.model_construct(**context.envelope())


# ------------------------------------------------------------------------------- what is said


def paths(document: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document, but its root."""
    if isinstance(document, dict):
        inner = list(document.items())
    else:
        inner = list(enumerate(document)) if isinstance(document, list) else []
    return [p for key, value in inner for p in ((*here, key), *paths(value, (*here, key)))]


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copied = document.copy()
    copied[path[0]] = replaced(document[path[0]], path[1:], value)
    return copied


@st.composite
def bodies(draw: st.DrawFn, kind: type[m.Message], tasks: tuple[str, ...]) -> bytes:
    """A message of that kind about the campaign under attack, as it should be or spoilt."""
    document = json.loads(draw(instances(kind)).model_dump_json())
    document["campaign"] = CAMPAIGN
    if "task" in document and draw(st.booleans()):
        document |= {"task": draw(st.sampled_from(tasks)), "attempt": 1}
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(paths(document)))
        document = replaced(document, path, draw(NASTY | JSON))
    body = json.dumps(document).encode()
    if draw(st.integers(0, 4)):
        return body
    at = draw(st.integers(0, len(body)))
    return body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """One for all messages of a kind, unless one of them ends the campaign."""
    return Target(tmp_path)


def test_how_many() -> None:
    print(f"{PER_KIND * len(EVERY)} inputs")
    assert PER_KIND * len(EVERY) >= INPUTS


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@settings(max_examples=PER_KIND, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_crashes_and_nothing_is_written_elsewhere(
    kind: type[m.Message], data: st.DataObject, target: Target
) -> None:
    body = data.draw(bodies(kind, target.tasks))
    decoded = understood(body)
    with capture_logs():
        target.say(body)
        target.order(body)
    target.check()
    if decoded is None:
        assert not bury(target.store, [DeadLetter(body)])  # it is there
    if not (target.state.paused is None and target.state.finished is None):
        target.begin()  # a lie of a worker's, or somebody's word, has ended what there was


def understood(body: bytes) -> m.Message | None:
    """No bytes raise anything but what says that they are no message."""
    try:
        message = decode(body)
    except ValidationError:
        return None
    assert isinstance(message, m.Message)
    return message
