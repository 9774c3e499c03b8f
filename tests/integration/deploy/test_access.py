"""The files of `dpstream access` at a real broker and a real S3 server: every user can do its own
work, and nobody else's."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pika
import pytest
from ase.build import molecule
from structlog.testing import capture_logs

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.services.coordinator.inbox import Inbox
from dpstream.services.coordinator.parked import ParkedEvents
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared import messages as m
from dpstream.shared.access import ROLES
from dpstream.shared.atoms.frames import Batch, canonical, frame_key, from_ase
from dpstream.shared.bus.rabbit import RabbitBus
from dpstream.shared.bus.rabbit_subscription import SECRET
from dpstream.shared.bus.topology import CONTROL, COORDINATOR, MOST_OFFERED, PROPOSALS
from dpstream.shared.codec import (
    encode,
    is_published_under,
    names_of,
    queue_of,
    topic_of,
)
from dpstream.shared.errors import NotFound, QueueFull, Refused, StoreError
from dpstream.shared.ports import Bus, Delivery, Outgoing, Subscription
from dpstream.shared.proof import digest
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.store.s3 import S3Store
from dpstream.shared.values import DEADLETTER_PREFIX, SIGNERS, FrameRef, Ref, campaign_uri
from tests.support.adapters.dead_letters import letters
from tests.support.campaigns.amendments import announced
from tests.support.campaigns.campaign_simulator import submission
from tests.support.campaigns.coordinator import small
from tests.support.campaigns.sample_ledger import NAME
from tests.support.campaigns.sample_messages import example
from tests.support.deployments.least_privilege import PREFIX, VHOST
from tests.support.servers.certificate_authority import Authority

RIGHTS = ("configure", "write", "read")
WORKERS = ("trainer", "explorer", "labeler")
NO_CAMPAIGN = "-"
"""In the topic of an event that belongs to no campaign."""


# --------------------------------------------------------------------------------------- the broker


def say(kind: str) -> list[Outgoing]:
    return [Outgoing(b"{}", topic=f"methane.{kind}")]


def test_the_coordinator_may_declare_whatever_it_declares(
    bus_of: Callable[[str], RabbitBus], rabbit_node: RabbitNode
) -> None:
    with capture_logs() as said:
        coordinator = RabbitBus(bus_of("coordinator").settings)
        coordinator.publish([Outgoing(b"{}", queue="label.fresh")])
        coordinator.consume("label.fresh").cancel()
        coordinator.close()
    assert not [line for line in said if line["event"] == "not declared"]
    queues = {queue["name"] for queue in rabbit_node.manage("GET", f"/api/queues/{VHOST}")}
    assert "label.fresh" in queues


@pytest.mark.parametrize(
    ("user", "queue", "result"),
    [
        ("trainer", "train", "member-trained"),
        ("explorer", "explore", "chunk-explored"),
        ("explorer", "judge", "candidates-selected"),
        ("explorer", "screen", "structures-screened"),
        ("labeler", "label.tblite", "labels-done"),
    ],
)
def test_a_worker_takes_its_tasks_and_says_its_results(
    bus_of: Callable[[str], RabbitBus], user: str, queue: str, result: str
) -> None:
    coordinator, worker = bus_of("coordinator"), bus_of(user)
    coordinator.publish([Outgoing(b"command", queue=queue)])
    tasks = worker.consume(queue)
    taken = tasks.next(timeout=10)
    assert taken is not None
    assert taken.body == b"command"
    taken.ack()
    tasks.cancel()
    for kind in ("task-claimed", "task-heartbeat", "task-released", "task-failed", result):
        worker.publish(say(kind))
    heard = coordinator.consume("coordinator", prefetch=10)
    for _ in range(5):
        event = heard.next(timeout=10)
        assert event is not None
        event.ack()
    heard.cancel()


@pytest.mark.parametrize("user", WORKERS)
@pytest.mark.parametrize(
    "kind", ["campaign-finished", "campaign-submitted", "models-ready", "lease-lapsed"]
)
def test_a_worker_does_not_speak_for_others(
    bus_of: Callable[[str], RabbitBus], user: str, kind: str
) -> None:
    with pytest.raises(Refused, match=kind):
        bus_of(user).publish(say(kind))


@pytest.mark.parametrize(
    ("user", "kind"),
    [
        ("labeler", "member-trained"),
        ("trainer", "labels-done"),
        ("explorer", "labels-done"),
        ("generator", "structures-judged"),
        ("generator", "labels-done"),
        ("operator", "labels-done"),
        ("coordinator", "labels-done"),
    ],
)
def test_results_of_others_cannot_be_made_up(
    bus_of: Callable[[str], RabbitBus], user: str, kind: str
) -> None:
    with pytest.raises(Refused):
        bus_of(user).publish(say(kind))


@pytest.mark.parametrize("user", ROLES)
def test_a_role_publishes_its_own_kinds_of_events_and_no_others(
    bus_of: Callable[[str], RabbitBus], user: str
) -> None:
    bus, published = bus_of(user), set[str]()
    for kind in chain.from_iterable(map(names_of, (*m.COMMANDS, *m.EVENTS))):
        with suppress(Refused):
            bus.publish(say(kind))
            published.add(kind)
    assert published == set(ROLES[user].publishes)
    if published:
        assert received(bus_of("coordinator"), len(published), queue_of_events(user))


@pytest.mark.parametrize("user", [user for user, role in ROLES.items() if role.publishes])
def test_under_its_own_topics_a_role_says_nothing_else(
    bus_of: Callable[[str], RabbitBus], tmp_path: Path, user: str
) -> None:
    """Every message of every kind, of this campaign and of another, under every topic of the role:
    the coordinator takes in those that are what their topic says."""
    kinds = [*m.COMMANDS, *m.EVENTS]
    topics = [f"{of}.{kind}" for kind in ROLES[user].publishes for of in (NAME, NO_CAMPAIGN)]
    store = FolderStore(tmp_path)
    amended = announced(store, example(m.CampaignAmended))
    messages = [amended if kind is m.CampaignAmended else example(kind) for kind in kinds]
    others = [example(kind) for kind in kinds if not issubclass(kind, m.ProcessStarted)]
    messages += [each.model_copy(update={"campaign": "another"}) for each in others]
    sent = [(topic, message) for topic in topics for message in messages]
    bus_of(user).publish([Outgoing(encode(each), topic=topic) for topic, each in sent])
    claim = example(m.TaskClaimed)
    store.create(claim_uri(claim.campaign, claim.task, claim.attempt), encode(claim))
    inbox = Inbox(store, time.time, ParkedEvents(store), users=True)
    read = inbox.read_all(received(bus_of("coordinator"), len(sent), queue_of_events(user)))
    for (topic, message), (delivery, taken) in zip(sent, read, strict=True):
        assert (delivery.topic, delivery.user) == (topic, user)
        assert (taken is not None) == is_published_under(message, topic), (topic, message)
    believed = sum(is_published_under(each, topic) for topic, each in sent)
    assert believed == len(ROLES[user].publishes)
    refused = letters(map(store.get, store.list(DEADLETTER_PREFIX)))
    assert {letter["user"] for letter in refused} == {user}
    assert len(refused) == len(sent) - believed


def test_a_user_has_a_limited_number_of_connections(url_of: Callable[[str], str]) -> None:
    most, url = ROLES["generator"].connections, pika.URLParameters(url_of("generator"))
    opened = list[pika.BlockingConnection]()
    with ExitStack() as connections, suppress(pika.exceptions.ProbableAccessDeniedError):
        for _ in range(most + 5):
            opened.append(connections.enter_context(pika.BlockingConnection(url)))
    assert 0 < len(opened) <= most


def test_a_message_that_no_service_would_read_is_refused(url_of: Callable[[str], str]) -> None:
    with pika.BlockingConnection(pika.URLParameters(url_of("generator"))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=r"too large|larger"):
            channel.basic_publish("dpstream.proposals", "x.structures-proposed", bytes(200_000))


@pytest.mark.parametrize("kind", [m.LabelsDone, m.TaskHeartbeat, m.TaskFailed, m.TaskReleased])
def test_results_count_from_the_user_that_has_claimed_the_task(
    bus_of: Callable[[str], RabbitBus],
    url_of: Callable[[str], str],
    tmp_path: Path,
    kind: type[m.TaskEvent],
) -> None:
    """Two users of one role: the password of one publishes nothing about tasks of the other."""
    store, secret, event = FolderStore(tmp_path), "a fresh one", example(kind)
    proof = digest(digest(secret))
    claim = example(m.TaskClaimed).model_copy(update={"user": "labeler", "proof_sha256": proof})
    store.create(claim_uri(claim.campaign, claim.task, claim.attempt), encode(claim))
    inbox = Inbox(store, time.time, ParkedEvents(store), users=True)
    for user, given in (("vasp", secret), ("labeler", None), ("labeler", secret)):
        bus_of(user).publish([Outgoing(encode(event), topic=topic_of(event), secret=given)])
    anonymous = pika.BasicProperties(headers={SECRET: secret})
    with pika.BlockingConnection(pika.URLParameters(url_of("vasp"))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("dpstream.events", topic_of(event), encode(event), anonymous)
    with capture_logs() as logged:
        read = inbox.read_all(received(bus_of("coordinator"), 4))
    assert [taken for _, taken in read] == [None, None, event, None]
    refused = letters(map(store.get, store.list(DEADLETTER_PREFIX)))
    assert [letter["user"] for letter in refused] == ["vasp", "labeler", None]
    assert secret not in f"{logged} {refused}"


def test_nobody_publishes_in_the_name_of_another(url_of: Callable[[str], str]) -> None:
    with pika.BlockingConnection(pika.URLParameters(url_of("generator"))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        stolen = pika.BasicProperties(user_id="operator")
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            channel.basic_publish("dpstream.proposals", "x.structures-proposed", b"{}", stolen)
    assert refused.value.reply_code == 406


def queue_of_events(user: str) -> str:
    return PROPOSALS if user == "generator" else COORDINATOR


def received(bus: RabbitBus, count: int, queue: str = COORDINATOR) -> list[Delivery]:
    """The next deliveries from a queue of the coordinator, settled."""
    subscription = bus.consume(queue, prefetch=count)
    found = []
    for _ in range(count):
        delivery = subscription.next(timeout=10)
        assert delivery is not None
        delivery.ack()
        found.append(delivery)
    subscription.cancel()
    return found


@pytest.mark.parametrize(
    ("user", "queue"),
    [
        ("labeler", "train"),
        ("labeler", "coordinator"),
        ("labeler", "deadletters"),
        ("trainer", "explore"),
        ("explorer", "train"),
        ("generator", "judge"),
        ("generator", "screen"),
        ("operator", "coordinator"),
    ],
)
def test_queues_of_others_cannot_be_read(
    bus_of: Callable[[str], RabbitBus], user: str, queue: str
) -> None:
    with pytest.raises(Refused):
        bus_of(user).consume(queue).next(timeout=10)


@pytest.mark.parametrize("user", [*WORKERS, "generator", "operator"])
def test_only_the_coordinator_gives_commands(bus_of: Callable[[str], RabbitBus], user: str) -> None:
    with pytest.raises(Refused):
        bus_of(user).publish([Outgoing(b"{}", queue="train")])


@pytest.mark.parametrize("user", [*WORKERS, "generator", "operator"])
@pytest.mark.parametrize(
    "method", ["queue_delete", "queue_purge", "queue_declare", "basic_publish"]
)
def test_queues_are_neither_made_nor_emptied_nor_filled_nor_deleted(
    bus_of: Callable[[str], RabbitBus], url_of: Callable[[str], str], user: str, method: str
) -> None:
    bus_of("coordinator").depth("train")
    arguments: dict[str, Any] = {
        "queue_delete": {"queue": "coordinator"},
        "queue_purge": {"queue": "coordinator"},
        "queue_declare": {"queue": "mine", "durable": True},
        "basic_publish": {"exchange": "", "routing_key": "coordinator", "body": b"{}"},
    }[method]
    with pika.BlockingConnection(pika.URLParameters(url_of(user))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            getattr(channel, method)(**arguments)
        assert refused.value.reply_code == 403


def test_a_generator_proposes_and_hears_the_verdict(bus_of: Callable[[str], RabbitBus]) -> None:
    generator, coordinator = bus_of("generator"), bus_of("coordinator")
    queue = f"watch-{uuid.uuid4()}"
    generator.bind(queue, "methane.structures-judged")
    verdicts = generator.consume(queue)
    generator.publish(say("structures-proposed"))
    coordinator.publish(say("structures-judged"))
    verdict = verdicts.next(timeout=10)
    assert verdict is not None
    verdict.ack()


def test_a_generator_publishes_nothing_among_other_events(url_of: Callable[[str], str]) -> None:
    with pika.BlockingConnection(pika.URLParameters(url_of("generator"))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            channel.basic_publish("dpstream.events", "x.structures-proposed", b"{}")
    assert refused.value.reply_code == 403


@pytest.mark.parametrize("pattern", ["methane.labels-done", "methane.*", "#", "*.task-claimed"])
def test_a_generator_hears_nothing_else(bus_of: Callable[[str], RabbitBus], pattern: str) -> None:
    with pytest.raises(Refused):
        bus_of("generator").bind(f"watch-{uuid.uuid4()}", pattern)


def test_a_request_is_answered_before_a_generators_backlog(
    bus_of: Callable[[str], RabbitBus], tmp_path: Path
) -> None:
    store, of = FolderStore(tmp_path), small()
    store.put(campaign_uri("world", "spec.json"), of.model_dump_json().encode())
    store.put(campaign_uri("world", "submitted.json"), encode(submission(of)))
    coordinator = Coordinator(bus_of("coordinator"), store)
    open_campaign = coordinator.open("world")
    empty(coordinator.bus)
    offered = example(m.StructuresProposed).model_copy(update={"campaign": "world"})
    backlog = [offered.model_copy(update={"correlation": str(n)}) for n in range(3000)]
    with pytest.raises(QueueFull):
        bus_of("generator").publish([Outgoing(encode(e), topic=topic_of(e)) for e in backlog])
    assert MOST_OFFERED <= coordinator.bus.depth(PROPOSALS) < 2 * MOST_OFFERED
    paused = m.CampaignPaused(id="pause", campaign="world", time=0.0, why="maintenance")
    bus_of("operator").publish([Outgoing(encode(paused), topic=topic_of(paused))])
    passes = coordinator._passes(threading.Event())
    for _ in range(3):
        next(passes)
    assert open_campaign.state.paused == "maintenance"
    assert coordinator.bus.depth(PROPOSALS) > MOST_OFFERED / 2
    passes.close()
    empty(coordinator.bus)


def test_a_coordinator_with_the_rights_of_an_earlier_release_serves(
    bus_of: Callable[[str], RabbitBus], rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    rights = f"/api/permissions/{VHOST}/coordinator"
    present = rabbit_node.manage("GET", rights)
    since = r"\|(control|proposals|dpstream\\\.proposals)(?=\|)"
    earlier = {key: re.sub(since, "", present[key]) for key in RIGHTS}
    assert earlier["read"] != present["read"]
    bus_of("coordinator").depth(CONTROL)
    bus = RabbitBus(bus_of("coordinator").settings)
    rabbit_node.manage("PUT", rights, earlier)
    try:
        with capture_logs() as logged:
            next(Coordinator(bus, FolderStore(tmp_path))._passes(threading.Event()))
        assert [line["queue"] for line in logged if "queue" in line] == [CONTROL, PROPOSALS]
    finally:
        rabbit_node.manage("PUT", rights, {key: present[key] for key in RIGHTS})
        bus.close()


def empty(bus: Bus) -> None:
    """Empties the coordinator's queues."""
    for queue in (COORDINATOR, CONTROL, PROPOSALS):
        subscription = bus.consume(queue, prefetch=1000)
        while (delivery := subscription.next(timeout=0.5)) is not None:
            delivery.ack()
        subscription.cancel()


def test_an_operator_submits_and_watches(bus_of: Callable[[str], RabbitBus]) -> None:
    operator, queue = bus_of("operator"), f"watch-{uuid.uuid4()}"
    operator.bind(queue, "methane.*")
    watching = operator.consume(queue)
    operator.publish(say("campaign-submitted"))
    heard = watching.next(timeout=10)
    assert heard is not None
    heard.ack()


# ---------------------------------------------------------------------------------------- the store


WRITERS = {
    "access/{}": set(),
    "access/label-signers.json": set(),
    "campaigns/c/spec.json": {"operator"},
    "campaigns/c/submitted.json": {"operator"},
    "campaigns/c/inputs/1.npz": {"operator"},
    "campaigns/c/proposals/{}.npz": {"generator"},
    "campaigns/c/claims/t/{}": {"coordinator", *WORKERS},
    "campaigns/c/claims/t/{}.stop": {"coordinator"},
    "campaigns/c/results/t/1/{}": set(WORKERS),
    "campaigns/c/ledger/{}": {"coordinator"},
    "campaigns/c/parked/{}": {"coordinator"},
    "campaigns/c/ledger/results/{}": {"coordinator"},
    "campaigns/c/results/proposals/{}": set[str](),
    "campaigns/c/inputs/proposals/{}": set[str](),
    "campaigns/c/heads/{}": {"coordinator"},
    "campaigns/c/epoch/{}": {"coordinator"},
    "campaigns/c/snapshots/{}": {"coordinator"},
    "campaigns/c/manifests/{}.json": {"coordinator"},
    "campaigns/c/committees/{}.json": {"coordinator"},
    "campaigns/c/finished.json": {"coordinator"},
    "labels/recipe/ab/{}.json": {"labeler"},
    "deadletters/{}": {"coordinator", *WORKERS},
    "elsewhere/{}": set[str](),
}


@pytest.mark.parametrize("key", WRITERS)
@pytest.mark.parametrize("user", ROLES)
def test_only_its_owners_create_an_object(
    store_of: Callable[..., S3Store], user: str, key: str
) -> None:
    name = key.format(uuid.uuid4().hex)
    if user in WRITERS[key]:
        as_admin(store_of).delete(name)
        assert store_of(user).create(name, b"1")
        assert not store_of(user).create(name, b"2")
    else:
        with pytest.raises(Refused):
            store_of(user).create(name, b"1")


def test_labelers_read_the_public_keys(
    store_of: Callable[..., S3Store], access_files: Path
) -> None:
    """Those that the container which makes the bucket has put there."""
    written = store_of("admin", "").get(SIGNERS)
    assert written == (access_files / "label-signers.json").read_bytes()
    as_admin(store_of).put(SIGNERS, written)
    assert store_of("labeler").get(SIGNERS) == written
    with pytest.raises(Refused):
        store_of("trainer").get(SIGNERS)


def as_admin(store_of: Callable[..., S3Store]) -> S3Store:
    return store_of("admin")


@pytest.mark.parametrize("user", ROLES)
def test_everybody_passes_the_probe_of_its_start(
    store_of: Callable[..., S3Store], user: str
) -> None:
    store_of(user).probe()


@pytest.mark.parametrize("user", ROLES)
@pytest.mark.parametrize(
    "key", ["labels/r/ab/1.json", "campaigns/c/ledger/1", "campaigns/c/results/t/1/model.pb"]
)
def test_nobody_deletes_what_was_computed(
    store_of: Callable[..., S3Store], user: str, key: str
) -> None:
    as_admin(store_of).put(key, b"1")
    with pytest.raises(Refused):
        store_of(user).delete(key)
    assert as_admin(store_of).get(key) == b"1"


@pytest.mark.parametrize("user", WORKERS)
def test_a_worker_reads_what_its_task_refers_to(
    store_of: Callable[..., S3Store], user: str
) -> None:
    for key in (
        "campaigns/c/spec.json",
        "campaigns/c/inputs/1.npz",
        "campaigns/c/results/t/1/chosen.npz",
        "labels/r/ab/2.json",
    ):
        as_admin(store_of).put(key, b"1")
        assert store_of(user).get(key) == b"1"
    for key in ("campaigns/c/manifests/1.json", "campaigns/c/committees/1.json"):
        as_admin(store_of).put(key, b"1")
        if user == "labeler":  # it needs no datasets and no models
            with pytest.raises(Refused):
                store_of(user).get(key)
        else:
            assert store_of(user).get(key) == b"1"
    with pytest.raises(NotFound):
        store_of(user).get("labels/r/ab/absent.json")
    assert not store_of(user).exists("campaigns/c/claims/t/1.stop")


@pytest.mark.parametrize("user", [*WORKERS, "generator"])
def test_the_ledger_is_not_read_by_workers(store_of: Callable[..., S3Store], user: str) -> None:
    as_admin(store_of).put("campaigns/c/ledger/1", b"1")
    with pytest.raises(Refused):
        store_of(user).get("campaigns/c/ledger/1")
    with pytest.raises(Refused):
        list(store_of(user).list("campaigns/"))


def test_the_coordinator_lists_campaigns_and_asks_workers_to_stop(
    store_of: Callable[..., S3Store],
) -> None:
    coordinator = store_of("coordinator")
    coordinator.put("campaigns/c/claims/t/1.stop", b"{}")
    assert "campaigns/c/claims/t/1.stop" in list(coordinator.list("campaigns/c/"))
    with pytest.raises(Refused):
        coordinator.put("campaigns/c/results/t/1/x", b"1")


@pytest.mark.parametrize("user", ROLES)
def test_nobody_sees_beyond_the_prefix(store_of: Callable[..., S3Store], user: str) -> None:
    store_of("admin", "other").put("campaigns/c/spec.json", b"1")
    with pytest.raises(Refused):
        store_of(user, "other").get("campaigns/c/spec.json")
    with pytest.raises(Refused):
        list(store_of(user, "other").list("campaigns/"))


def test_only_who_trusts_the_authority_speaks_to_the_store(
    store_of: Callable[..., S3Store], tmp_path: Path
) -> None:
    trusting = store_of("labeler")
    with pytest.raises(NotFound):
        trusting.get("labels/r/ab/absent.json")
    for ca_file in (None, Authority(tmp_path).file):
        wary = S3Store(trusting.settings.model_copy(update={"ca_file": ca_file}))
        with pytest.raises(StoreError, match="certificate verify failed"):
            wary.get("labels/r/ab/absent.json")


# --------------------------------------------------------------------------- services as themselves


def test_a_labeler_labels_as_itself_and_a_coordinator_opens_the_campaign(
    bus_of: Callable[[str], RabbitBus],
    store_of: Callable[..., S3Store],
    url_of: Callable[[str], str],
    secret_of: Callable[[str, str], str],
    access_endpoint: str,
    authority: Authority,
    tmp_path: Path,
) -> None:
    coordinator = bus_of("coordinator")
    heard = coordinator.consume("coordinator", prefetch=10)
    command = stored_label(store_of("operator"))
    coordinator.publish([Outgoing(encode(command), queue=queue_of(command))])
    process = subprocess.Popen(
        [sys.executable, "-m", "dpstream.services.labeler", "--max-tasks", "1"],
        env={
            "DPSTREAM_BROKER": url_of("labeler"),
            "DPSTREAM_STORE": f"s3://dpstream/{PREFIX}",
            "DPSTREAM_STORE_ENDPOINT": access_endpoint,
            "DPSTREAM_STORE_ADDRESSING": "path",
            "DPSTREAM_STORE_CA_FILE": str(authority.file),
            "DPSTREAM_STORE_ACCESS_KEY": secret_of("labeler", "ACCESS_KEY"),
            "DPSTREAM_STORE_SECRET_KEY": secret_of("labeler", "SECRET_KEY"),
            "DPSTREAM_LABELER_CODES": "tblite",
            "DPSTREAM_SCRATCH": str(tmp_path / "scratch"),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        inbox = Coordinator(coordinator, store_of("coordinator")).inbox
        claim, *_, done = arrived(heard, inbox, m.LabelsDone)
        assert claim.user == "labeler"
        assert inbox.dead_letters.count == 0
        assert [accepted.key for accepted in done.accepted] == [command.frames[0].key]
        assert store_of("trainer").exists(done.accepted[0].label.uri)
        assert secret_of("labeler", "PASSWORD") not in said
    finally:
        process.kill()
        heard.cancel()
    open_campaign = Coordinator(coordinator, store_of("coordinator")).open("demo")
    assert open_campaign.ledger.campaign == "demo"


def stored_label(operator: S3Store) -> m.Label:
    """A command whose spec and frame an operator has stored."""
    spec = Spec.model_validate(
        {
            "name": "demo",
            "type_map": ["H", "C"],
            "systems": {"methane": {"structures": ["methane.xyz"]}},
            "initial": {"perturb": {}},
            "stages": [{"name": "one", "systems": ["methane"], "temperatures": [300]}],
            "labels": {"code": "tblite"},
            "verification": {"reference_md": {"system": "methane"}},
        }
    )
    frame = canonical(from_ase(molecule("CH4"))).frame
    bodies = {
        "campaigns/demo/spec.json": spec.model_dump_json().encode(),
        "campaigns/demo/inputs/frames.npz": Batch.of([frame]).dumps(),
    }
    for key, body in bodies.items():
        assert operator.create(key, body)
    stored, batch = (Ref.to(key, body) for key, body in bodies.items())
    return m.Label(
        id="command",
        campaign="demo",
        time=0.0,
        task="label-methane",
        title="label methane",
        max_seconds=600.0,
        spec=stored,
        capability="tblite",
        recipe=make_recipe(spec.labels).digest,
        frames=(FrameRef(batch=batch, index=0, key=frame_key(frame)),),
    )


def arrived(heard: Subscription, inbox: Inbox, last: type[m.Message]) -> list[Any]:
    """The events about tasks that the coordinator takes in up to this one, but for what other tests
    published."""
    found: list[Any] = []
    while not (found and isinstance(found[-1], last)):
        delivery = heard.next(timeout=10)
        assert delivery is not None
        delivery.ack()
        if delivery.body != b"{}":
            ((_, event),) = inbox.read_all([delivery])
            found += [event] if isinstance(event, m.TaskEvent) else []
    return found
