"""Events about an attempt count only from the worker that has claimed it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dpstream.services.coordinator import claims
from dpstream.services.coordinator.inbox import Inbox
from dpstream.services.coordinator.parked import ParkedEvents
from dpstream.shared import messages as m
from dpstream.shared.codec import decode, encode, kind_of, topic_of
from dpstream.shared.ports import Outgoing
from dpstream.shared.proof import digest, proves
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri
from tests.support.adapters.dead_letters import buried_bodies
from tests.support.adapters.published import Published
from tests.support.campaigns.campaign_simulator import CampaignSimulator
from tests.support.campaigns.coordinator import CoordinatorHarness, first_task, small, status
from tests.support.campaigns.sample_messages import example
from tests.support.workers.worker import WorkerHarness, label, patient

SECRET = "a fresh one"
OF_WORKERS = [
    kind
    for kind in m.EVENTS
    if issubclass(kind, m.TaskEvent) and kind.PUBLISHERS
    if kind not in (m.TaskClaimed, m.TaskDeclined)
]
KEY = claim_uri(example(m.TaskFailed).campaign, "x", 1)


def claim(**fields: Any) -> m.TaskClaimed:
    return example(m.TaskClaimed).model_copy(update=fields)


OWN = claim(user="labeler", proof_sha256=digest(digest(SECRET)))
OLD = claim()
"""Of release 0.1.0."""


class CountingStore(FolderStore):
    gets = 0

    def get(self, key: str, most: int | None = None) -> bytes:
        self.gets += 1
        return super().get(key, most)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path)


def inbox_of(store: FolderStore, users: bool = True) -> Inbox:
    return Inbox(store, lambda: 0.0, ParkedEvents(store), users=users)


def taken(inbox: Inbox, event: m.Message, user: str | None, secret: str | None) -> bool:
    ((_, found),) = inbox.read_all([Published(encode(event), topic_of(event), user, secret)])
    return found is not None


# ------------------------------------------------------------------------------- the coordinator


@pytest.mark.parametrize("kind", OF_WORKERS, ids=kind_of)
def test_an_event_counts_from_the_user_of_the_claim_with_its_secret(
    store: CountingStore, kind: type[m.TaskEvent]
) -> None:
    store.create(KEY, encode(OWN))
    inbox, event = inbox_of(store), example(kind)
    with capture_logs() as logged:
        for user, secret in [
            ("another", SECRET),
            (None, SECRET),
            ("labeler", None),
            ("labeler", ""),
            ("labeler", "a guess"),
            ("labeler", digest(SECRET)),  # beside a result, where others read it
            ("another", OWN.proof_sha256),
        ]:
            assert not taken(inbox, event, user, secret), (user, secret)
    assert taken(inbox, event, "labeler", SECRET)
    assert [line["user"] for line in logged].count("another") == 2
    assert SECRET not in str(logged)
    assert set(buried_bodies(store)) == {encode(event)}
    assert SECRET.encode() not in encode(event)


@pytest.mark.parametrize("kind", OF_WORKERS, ids=kind_of)
def test_without_a_claim_no_worker_has_a_result(
    store: CountingStore, kind: type[m.TaskEvent]
) -> None:
    assert not taken(inbox_of(store), example(kind), "labeler", SECRET)
    store.create(KEY, encode(example(m.TaskRevoked)))
    permanent = not (kind is m.TaskFailed and not example(kind).permanent)
    assert taken(inbox_of(store), example(kind), "labeler", SECRET) is not permanent


def test_an_attempt_without_a_readable_claim_may_fail_and_be_tried_again(
    store: CountingStore,
) -> None:
    inbox, failed = inbox_of(store), example(m.TaskFailed).model_copy(update={"permanent": False})
    assert not taken(inbox, failed, "labeler", None)
    store.create(KEY, b"\x00garbage")
    assert taken(inbox, failed, "labeler", None)
    assert not taken(inbox, failed.model_copy(update={"permanent": True}), "labeler", None)
    assert not taken(inbox, example(m.TaskReleased), "labeler", None)


def test_anybody_repeats_a_claim_and_nobody_changes_it(store: CountingStore) -> None:
    inbox = inbox_of(store)
    assert not taken(inbox, OWN, "labeler", None)
    store.create(KEY, encode(OWN))
    assert taken(inbox, OWN, "another", None)
    for change in ({"user": "another"}, {"worker": "another"}, {"process": "another"}):
        assert not taken(inbox, OWN.model_copy(update=change), "labeler", SECRET)


@pytest.mark.parametrize("user", ["labeler", None])
def test_a_claim_of_an_earlier_release_is_enough(store: CountingStore, user: str | None) -> None:
    body = json.loads(encode(OLD))
    del body["process"]
    assert not {"user", "proof_sha256"} & set(body)
    store.create(KEY, json.dumps(body).encode())
    inbox = inbox_of(store)
    assert taken(inbox, OLD, user, None)
    assert taken(inbox, example(m.LabelsDone), user, None)


def test_a_claim_of_a_newer_worker_is_read_as_far_as_it_is_known(store: CountingStore) -> None:
    newer = json.dumps(json.loads(encode(OWN)) | {"invented": 1}).encode()
    store.create(KEY, newer)
    inbox = inbox_of(store)
    ((_, claimed),) = inbox.read_all([Published(newer, topic_of(OWN), "another")])
    assert claimed == OWN
    assert taken(inbox, example(m.LabelsDone), "labeler", SECRET)
    assert not taken(inbox, example(m.LabelsDone), "another", SECRET)


def test_where_the_broker_states_no_users_the_secret_decides(store: CountingStore) -> None:
    store.create(KEY, encode(OWN))
    inbox = inbox_of(store, users=False)
    assert not taken(inbox, example(m.LabelsDone), None, None)
    assert taken(inbox, example(m.LabelsDone), None, SECRET)


def test_a_late_result_is_compared_with_the_claim_of_its_own_attempt(store: CountingStore) -> None:
    store.create(KEY, encode(OWN))
    second = OWN.model_copy(update={"attempt": 2, "user": "vasp"})
    store.create(claim_uri(second.campaign, second.task, 2), encode(second))
    inbox, first = inbox_of(store), example(m.LabelsDone)
    for attempt, user in ((1, "labeler"), (2, "vasp")):
        event = first.model_copy(update={"attempt": attempt})
        for each in ("labeler", "vasp"):
            assert taken(inbox, event, each, SECRET) == (each == user)


def test_claims_are_read_once_and_a_limited_number_is_remembered(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "REMEMBERED", 2)
    inbox, beat = inbox_of(store), example(m.TaskHeartbeat)
    beats = [beat.model_copy(update={"attempt": attempt}) for attempt in (1, 2, 3)]
    for each in beats:
        own = OWN.model_copy(update={"attempt": each.attempt})
        store.create(claim_uri(each.campaign, each.task, each.attempt), encode(own))
    for each in (*beats[:2] * 50, beats[0], beats[2], beats[0]):
        assert taken(inbox, each, "labeler", SECRET)
    assert store.gets == 3
    assert taken(inbox, beats[1], "labeler", SECRET)
    assert store.gets == 4
    assert len(inbox.claims._read) == 2


def test_a_claim_that_is_overwritten_keeps_its_worker(store: CountingStore) -> None:
    """A store may allow a stolen key to replace objects."""
    store.create(KEY, encode(OWN))
    inbox = inbox_of(store)
    assert taken(inbox, OWN, "labeler", None)
    store.put(KEY, encode(OWN.model_copy(update={"user": "thief"})))
    assert not taken(inbox, example(m.LabelsDone), "thief", SECRET)
    assert taken(inbox, example(m.LabelsDone), "labeler", SECRET)


def test_events_of_a_newer_kind_are_kept_from_their_own_worker_alone(
    store: CountingStore,
) -> None:
    about = {"campaign": OWN.campaign, "task": OWN.task, "attempt": 1}
    store.create(campaign_uri(OWN.campaign, "spec.json"), b"{}")
    store.create(KEY, encode(OWN))
    inbox, topic = inbox_of(store), f"{OWN.campaign}.labels-doubted"
    for user, changes, kept in (
        ("another", {}, 0),
        ("labeler", {"attempt": None}, 0),
        ("labeler", {}, 1),
    ):
        body = json.dumps({"type": "labels-doubted/1", **about, **changes}).encode()
        inbox.read_all([Published(body, topic, user, SECRET)])
        assert len(list(store.list(campaign_uri(OWN.campaign, "parked/")))) == kept
    assert inbox.dead_letters.count == 2


@pytest.mark.parametrize(
    "kind", [kind for kind in m.EVENTS if kind.PUBLISHERS == m.LEDGER_ONLY], ids=kind_of
)
def test_what_the_coordinator_alone_writes_never_arrives(
    store: CountingStore, kind: type[m.Message]
) -> None:
    store.create(KEY, encode(OWN))
    assert not taken(inbox_of(store), example(kind), "admin", SECRET)


def test_a_forged_failure_abandons_no_task(tmp_path: Path) -> None:
    harness = CoordinatorHarness(FolderStore(tmp_path))
    open_campaign, command = first_task(harness, small())
    claimed, *results = CampaignSimulator().answer(command)
    harness.publish(claimed.model_copy(update={"proof_sha256": OWN.proof_sha256}))
    fields = CampaignSimulator.envelope(command)
    failed = m.TaskFailed(**fields, permanent=True, reason="forged")
    for guess in (None, "a guess"):
        harness.bus.publish([Outgoing(encode(failed), topic=topic_of(failed), secret=guess)])
    harness.step()
    assert status(open_campaign, command) == "running"
    harness.bus.publish([Outgoing(encode(e), topic=topic_of(e), secret=SECRET) for e in results])
    harness.step()
    assert status(open_campaign, command) == "done"
    assert harness.coordinator.inbox.dead_letters.count == 2


def test_a_repeated_claim_extends_no_lease(tmp_path: Path) -> None:
    harness = CoordinatorHarness(FolderStore(tmp_path))
    open_campaign, command = first_task(harness)
    claimed = CampaignSimulator().answer(command)[0]
    harness.publish(claimed)
    harness.step()
    lease = open_campaign.leases[command.task]
    harness.now += 10.0
    harness.publish(claimed)
    harness.step()
    assert open_campaign.leases[command.task] == lease


# ------------------------------------------------------------------------------------ the worker


def test_every_event_of_an_attempt_comes_with_the_secret_of_its_claim(
    workers: WorkerHarness,
) -> None:
    workers.send(label("t1"), label("t2"))
    contexts: list[Context] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        contexts.append(context)
        context.publish(m.LabelsDone(**context.envelope(), last=False))
        return m.LabelsDone(**context.envelope())

    workers.worker(handler)
    assert_secrets(workers, 6)
    assert len({context.secret for context in contexts}) == 2
    for context in contexts:
        assert context.secret
        assert context.secret not in repr(context)
        assert context.secret not in repr(context.outgoing(OWN))
        stored = b"".join(map(workers.store.get, workers.store.list("")))
        assert context.secret.encode() not in stored
        command = context.command
        claim = decode(workers.store.get(claim_uri(command.campaign, command.task, 1)))
        assert proves(context.proof, claim)
        assert not proves(context.secret, claim)


def test_a_worker_repeats_the_claim_of_a_newer_one(workers: WorkerHarness) -> None:
    about = {"campaign": "methane", "task": "t1"}
    newer = json.dumps(json.loads(encode(OWN)) | about | {"invented": 1}).encode()
    workers.store.create(claim_uri("methane", "t1", 1), newer)
    workers.send(label("t1"))
    workers.worker()
    assert workers.next_event() == OWN.model_copy(update=about)
    assert workers.no_event()


def test_heartbeats_and_releases_come_with_the_secret_too(workers: WorkerHarness) -> None:
    workers.send(label())
    worker = workers.worker(patient, heartbeat_seconds=0.05)
    assert_secrets(workers, 3)
    worker.stopping.set()
    assert_secrets(workers, 1)


def assert_secrets(workers: WorkerHarness, count: int) -> None:
    """The coordinator's inbox takes in the next events; without their secrets, only the claims."""
    inbox = inbox_of(workers.store)
    for _ in range(count):
        delivery = workers.events.next(10)
        assert delivery is not None
        event = inbox.read(delivery)
        assert event is not None
        bare = inbox.read(Published(delivery.body, delivery.topic))
        assert (bare is not None) == isinstance(event, m.TaskClaimed)
