"""The RabbitMQ adapter against a real node that is killed, wiped, and asked the impossible."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import psutil
import pytest
from pydantic import SecretStr, ValidationError

from dpstream.deploy.devcluster.rabbitmq import RabbitNode, TlsFiles
from dpstream.deploy.devcluster.waiting import within
from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings
from dpstream.shared.bus.rabbit_queues import queue_arguments
from dpstream.shared.bus.topology import COORDINATOR, DEADLETTERS, TOPOLOGY, declared
from dpstream.shared.codec import MAX_BODY
from dpstream.shared.errors import BusError, Refused, Unroutable
from dpstream.shared.ports import Delivery, Outgoing, Subscription
from tests.support.servers.certificate_authority import Authority
from tests.support.servers.rabbit_server import require_rabbitmq

Connect = Callable[..., RabbitBus]

PROMPT = 30.0
"""Seconds within which what must happen happens."""


@pytest.fixture
def connect(rabbit_node: RabbitNode) -> Iterator[Connect]:
    """Makes connections to an empty broker; all are closed after the test."""
    rabbit_node.purge()
    made: list[RabbitBus] = []

    def factory(**settings: object) -> RabbitBus:
        values = {"url": rabbit_node.url} | settings
        made.append(RabbitBus(RabbitSettings.model_validate(values)))
        return made[-1]

    yield factory
    for bus in made:
        bus.close()


def take(subscription: Subscription) -> Delivery:
    delivery = subscription.next(PROMPT)
    assert delivery is not None
    return delivery


def insist(call: Callable[[], object]) -> None:
    """`call` until it succeeds, as services do."""
    deadline = time.monotonic() + 2 * PROMPT
    while True:
        try:
            call()
            return
        except BusError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# ------------------------------------------------------------------------------------- outages


class Publisher(threading.Thread):
    """Publishes numbered commands, one confirmed batch after the other, through any outage."""

    def __init__(self, bus: RabbitBus) -> None:
        super().__init__()
        self.bus, self.enough = bus, threading.Event()
        self.confirmed: set[bytes] = set()
        self.failures = 0

    def run(self) -> None:
        number = 0
        while not self.enough.is_set():
            bodies = [str(number + i).encode() for i in range(20)]
            number += 20
            try:
                self.bus.publish([Outgoing(body, queue="train") for body in bodies])
                self.confirmed.update(bodies)
            except BusError:
                self.failures += 1


class Consumer(threading.Thread):
    """Takes and acknowledges, subscribing anew whenever the subscription has ended."""

    def __init__(self, bus: RabbitBus) -> None:
        super().__init__()
        self.bus, self.enough = bus, threading.Event()
        self.got: set[bytes] = set()
        self.subscriptions = 0

    def run(self) -> None:
        while not self.enough.is_set():
            try:
                subscription = self.bus.consume("train", prefetch=10)
            except BusError:
                continue
            self.subscriptions += 1
            while not self.enough.is_set():
                asked = time.monotonic()
                delivery = subscription.next(1.0)
                if delivery is not None:
                    self.got.add(delivery.body)
                    delivery.ack()
                elif time.monotonic() - asked < 0.5:
                    break


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PROMPT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_confirmed_is_lost_when_the_broker_is_killed(
    rabbit_node: RabbitNode, connect: Connect
) -> None:
    publisher, consumer = Publisher(connect()), Consumer(connect())
    publisher.start()
    consumer.start()
    try:
        wait_for(lambda: len(consumer.got) > 200)
        rabbit_node.kill()
        before = len(publisher.confirmed)
        rabbit_node.start()
        wait_for(lambda: len(publisher.confirmed) > before + 200)
        publisher.enough.set()
        publisher.join(PROMPT)
        wait_for(lambda: publisher.confirmed <= consumer.got)
        queues = [row.name for row in TOPOLOGY if row.name[-1] != "*"]
        connect().publish([Outgoing(b"x", queue=name) for name in queues])  # the newest, too
    finally:
        publisher.enough.set()
        consumer.enough.set()
        publisher.join(PROMPT)
        consumer.join(PROMPT)
    assert publisher.failures > 0
    assert consumer.subscriptions > 1


def test_a_subscription_ends_with_its_broker_and_a_new_one_begins(
    rabbit_node: RabbitNode, connect: Connect
) -> None:
    bus = connect()
    bus.bind("listener", "*.models-ready")
    subscriptions = [bus.consume("train"), bus.consume("listener")]
    bus.publish([Outgoing(b"held", queue="train")])
    held = take(subscriptions[0])
    ended: list[object] = []
    waiting = threading.Thread(target=lambda: ended.append(subscriptions[1].next()))
    waiting.start()
    rabbit_node.kill()
    try:
        waiting.join(PROMPT)
        assert ended == [None]
        assert subscriptions[0].next() is None
        assert within(PROMPT, lambda: not bus.connected)
        held.ack()  # too late, and no error
        with pytest.raises(BusError, match=f"127.0.0.1:{urlsplit(rabbit_node.url).port}"):
            bus.publish([Outgoing(b"x", queue="train")])
    finally:
        rabbit_node.start()
    insist(lambda: bus.publish([Outgoing(b"event", topic="methane.models-ready")]))
    assert take(bus.consume("train")).redelivered
    listening = bus.consume("listener")  # its queue went with the connection; the name is ours
    bus.publish([Outgoing(b"again", topic="methane.models-ready")])
    assert take(listening).body == b"again"


def test_a_wiped_broker_gets_its_queues_back(rabbit_node: RabbitNode, connect: Connect) -> None:
    publisher, worker = connect(), connect()
    subscription = worker.consume("label.tblite")
    publisher.publish([Outgoing(b"before", queue="label.tblite")])
    assert take(subscription).body == b"before"
    rabbit_node.wipe()
    assert subscription.next(PROMPT) is None
    publisher.publish(
        [Outgoing(b"after", queue="label.tblite"), Outgoing(b"event", topic="methane.labels-done")]
    )
    assert take(worker.consume("label.tblite")).body == b"after"
    assert take(publisher.consume(COORDINATOR)).body == b"event"


def test_a_wiped_broker_is_mended_by_its_consumers(
    rabbit_node: RabbitNode, connect: Connect
) -> None:
    worker = connect()
    assert worker.depth("train") == 0
    rabbit_node.wipe()
    subscription = worker.consume("train")
    connect().publish([Outgoing(b"x", queue="train")])
    assert take(subscription).body == b"x"


@pytest.mark.parametrize("queue", ["train", COORDINATOR])
def test_a_consumer_that_the_broker_forgets_subscribes_anew(
    queue: str, rabbit_node: RabbitNode, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue deleted and declared again at once: no word to its consumer, and no delivery."""
    monkeypatch.setattr("dpstream.shared.bus.rabbit_subscription.SILENCE", 1.0)
    bus = connect()
    subscription = bus.consume(queue)
    with pika.BlockingConnection(pika.URLParameters(rabbit_node.url)) as other:
        channel = other.channel()
        channel.queue_delete(queue)
        channel.queue_declare(queue, durable=True, arguments=queue_arguments(queue, bus.settings))
    bus.publish([Outgoing(b"x", queue=queue)])
    came: list[bytes] = []

    def hears() -> bool:
        delivery = subscription.next(0.1)
        came.extend([delivery.body] if delivery else [])
        return bool(came) or not subscription.open

    assert within(PROMPT, hears)
    assert came or take(bus.consume(queue)).body == b"x"


def test_an_idle_connection_outlives_its_heartbeats(connect: Connect) -> None:
    """The broker closes a connection that is silent for two intervals."""
    bus = connect(heartbeat=1)
    subscription = bus.consume("train")
    end = time.monotonic() + 4.5
    while time.monotonic() < end:  # this thread has no time for the bus
        sum(range(10_000))
    assert bus.connected
    bus.publish([Outgoing(b"x", queue="train")])
    assert take(subscription).body == b"x"


# ------------------------------------------------------------------------- what cannot be delivered


def test_a_poison_message_ends_in_the_dead_letters(connect: Connect) -> None:
    bus = connect()
    bus.publish([Outgoing(b"poison", queue="train"), Outgoing(b"sound", queue="train")])
    row = declared("train")
    assert row is not None
    worker = bus.consume("train")
    rejected = 0
    while (delivery := take(worker)).body == b"poison":
        rejected += 1
        delivery.reject()
    assert rejected == row.redeliveries + 1
    assert delivery.body == b"sound"
    assert take(bus.consume(DEADLETTERS)).body == b"poison"


def test_a_message_that_kills_its_workers_ends_in_the_dead_letters(connect: Connect) -> None:
    connect().publish([Outgoing(b"poison", queue="train")])
    row = declared("train")
    assert row is not None
    for _ in range(row.redeliveries + 1):
        worker = connect()
        assert take(worker.consume("train")).body == b"poison"
        worker.close()
    assert take(connect().consume(DEADLETTERS)).body == b"poison"


def test_the_coordinator_may_put_events_back_for_as_long_as_it_takes(connect: Connect) -> None:
    bus = connect()
    bus.publish([Outgoing(b"event", topic="methane.labels-done")])
    subscription = bus.consume(COORDINATOR)
    for _ in range(100):
        take(subscription).reject()
    assert take(subscription).body == b"event"


def test_an_oversized_body_is_set_aside(connect: Connect, rabbit_node: RabbitNode) -> None:
    bus = connect()
    worker = bus.consume("train")
    oversized = b"x" * (MAX_BODY + 1)
    bus.publish([Outgoing(oversized, queue="train"), Outgoing(b"sound", queue="train")])
    assert take(worker).body == b"sound"
    assert take(bus.consume(DEADLETTERS)).body == oversized


def test_one_coordinator_at_a_time_hears_events(connect: Connect) -> None:
    first, second = connect(), connect()
    active, standby = first.consume(COORDINATOR, 10), second.consume(COORDINATOR, 10)
    first.publish([Outgoing(str(i).encode(), topic="methane.labels-done") for i in range(4)])
    assert [take(active).body for _ in range(4)] == [b"0", b"1", b"2", b"3"]
    assert standby.next(0.2) is None
    first.close()
    assert [take(standby).body for _ in range(4)] == [b"0", b"1", b"2", b"3"]


def test_what_has_nowhere_to_go_is_named(connect: Connect) -> None:
    bus = connect()
    with pytest.raises(Unroutable, match="'trian'"):
        bus.publish([Outgoing(b"x", queue="train"), Outgoing(b"x", queue="trian")])
    assert bus.depth("train") == 0
    with pytest.raises(Unroutable, match=r"'a\.b\.c' from dpstream\.events"):
        bus.publish([Outgoing(b"x", topic="a.b.c"), Outgoing(b"x", topic="a.labels-done")])
    bus.publish([Outgoing(b"y", topic="a.labels-done")])  # and the channel still works


def test_a_routing_key_that_amqp_cannot_carry_harms_nobody(connect: Connect) -> None:
    bus = connect()
    for _ in range(2):
        with pytest.raises(BusError):
            bus.publish([Outgoing(b"x", queue="train"), Outgoing(b"x", topic="a." + "b" * 300)])
    bus.publish([Outgoing(b"y", queue="train")])


def test_deployments_share_a_broker_by_prefix(connect: Connect) -> None:
    one, other = connect(), connect(prefix="other.")
    other.publish([Outgoing(b"o", queue="train"), Outgoing(b"e", topic="a.labels-done")])
    one.publish([Outgoing(b"x", queue="train")])
    assert take(other.consume("train")).body == b"o"
    assert take(other.consume(COORDINATOR)).body == b"e"
    assert take(one.consume("train")).body == b"x"
    assert one.depth(COORDINATOR) == 0


def test_a_broker_without_quorum_queues(connect: Connect) -> None:
    bus = connect(queue_type="classic", prefix="classic.")
    oversized = b"x" * (MAX_BODY + 1)
    bus.publish([Outgoing(oversized, queue="train"), Outgoing(b"x", queue="train")])
    delivery = take(bus.consume("train"))
    delivery.reject()
    assert take(bus.consume(DEADLETTERS)).body == oversized


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_message_that_a_broker_keeps_for_a_limited_time(
    connect: Connect, rabbit_node: RabbitNode, queue_type: str
) -> None:
    """It is no message that its consumers rejected."""
    bus = connect(queue_type=queue_type, prefix=f"{queue_type}.")
    bus.publish([Outgoing(b"x" * (MAX_BODY + 1), queue="train")])
    consumer, deadletters = bus.consume("train"), bus.consume(DEADLETTERS)
    oversized = take(deadletters)
    assert not oversized.dropped
    oversized.ack()
    consumer.cancel()
    policy = {"pattern": "train$", "definition": {"message-ttl": 100}, "apply-to": "queues"}
    rabbit_node.manage("PUT", "/api/policies/%2F/retention", policy)
    try:
        bus.publish([Outgoing(b"old", queue="train")])
        old = take(deadletters)
        assert (old.body, old.dropped) == (b"old", True)
    finally:
        rabbit_node.manage("DELETE", "/api/policies/%2F/retention")


def test_queues_that_an_operator_made_are_used_as_they_are(
    connect: Connect, rabbit_node: RabbitNode
) -> None:
    queue = {"durable": True, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 3}}
    rabbit_node.manage("PUT", "/api/queues/%2F/operator.train", queue)
    bus = connect(prefix="operator.")
    bus.publish([Outgoing(b"x", queue="train")])
    assert take(bus.consume("train")).body == b"x"


def test_a_user_without_the_right_to_declare_works_with_what_is_there(
    connect: Connect, rabbit_node: RabbitNode
) -> None:
    rights = {"configure": "^$", "write": r"^dpstream\.events$", "read": "^train$"}
    rabbit_node.manage("PUT", "/api/users/worker", {"password": "w", "tags": ""})
    rabbit_node.manage("PUT", "/api/permissions/%2F/worker", rights)
    connect().publish([Outgoing(b"task", queue="train")])
    worker = connect(
        url=rabbit_node.url.replace("dpstream:", "worker:", 1).replace(rabbit_node.password, "w")
    )
    subscription = worker.consume("train")
    delivery = take(subscription)
    worker.publish([Outgoing(b"event", topic="methane.labels-done")])
    delivery.ack()
    with pytest.raises(Refused):
        worker.consume("explore")
    with pytest.raises(Refused):
        worker.publish([Outgoing(b"x", queue="train")])
    worker.publish([Outgoing(b"event", topic="methane.labels-done")])
    rabbit_node.wipe()
    with pytest.raises(BusError):
        worker.consume("train")
    connect().depth("train")
    insist(lambda: worker.consume("train"))


# ------------------------------------------------------------------------------ secrets and TLS


def test_a_wrong_password_is_one_clear_line_without_it(
    connect: Connect,
    rabbit_node: RabbitNode,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "s3cret-and-wrong"
    bus = connect(url=rabbit_node.url.replace(rabbit_node.password, secret))
    with pytest.raises(Refused) as raised:
        bus.depth("train")
    error: BaseException | None = raised.value
    assert str(error) == f"{bus.settings.address}: user or password refused"
    while error is not None:
        assert secret not in repr(error) + str(error)
        error = error.__cause__ or error.__context__
    captured = capsys.readouterr()
    assert secret not in repr(bus.settings) + repr(bus) + caplog.text + captured.out + captured.err


def test_no_access_to_a_virtual_host(connect: Connect, rabbit_node: RabbitNode) -> None:
    with pytest.raises(Refused, match="virtual host"):
        connect(url=rabbit_node.url + "elsewhere").depth("train")


def test_nobody_listens_at_the_port(connect: Connect) -> None:
    with pytest.raises(BusError, match=r"^amqp://127\.0\.0\.1:9: .*refused"):
        connect(url="amqp://user:s3cret@127.0.0.1:9/").depth("train")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"url": "amqp://u:s3cret/x@host/"}, "percent-encoded"),
        ({"url": "http://u:s3cret@host/"}, "amqp://user:password@host"),
        ({"url": "amqp://u:s3cret@host/?heartbeat=0"}, "amqp://user:password@host"),
        ({"url": "amqp://u:s3cret@host/", "ca_file": __file__}, "amqps://"),
        ({"url": "amqps://u:s3cret@host/", "cert_file": __file__}, "set both"),
        ({"url": "amqps://u:s3cret@host/", "ca_file": "/absent"}, "ca_file"),
        ({"url": "amqp://u:s3cret@host/", "queue_type": "lazy"}, "'quorum' or 'classic'"),
    ],
)
def test_wrong_settings_are_named_and_secrets_are_not(
    values: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        RabbitSettings.model_validate(values)
    assert reason in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_tls_with_a_private_authority_and_client_certificates(tmp_path: Path) -> None:
    require_rabbitmq()
    authority = Authority(tmp_path)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (cert, key), (client_cert, client_key) = authority.issue("server"), authority.issue("client")
    node = RabbitNode(tmp_path / "node", tls=TlsFiles(authority.file, cert, key))
    node.start()
    try:
        url = SecretStr(node.url)
        client = {"cert_file": client_cert, "key_file": client_key}
        bus = RabbitBus(RabbitSettings(url=url, ca_file=authority.file, **client))
        bus.publish([Outgoing(b"x", queue="train")])
        assert take(bus.consume("train")).body == b"x"
        bus.close()
        for wrong, reason in (
            (RabbitSettings(url=url, ca_file=authority.file), "certificate required|EOF"),
            (RabbitSettings(url=url, **client), "certificate verify failed"),
            (
                RabbitSettings(url=url, ca_file=Authority(stranger).file, **client),
                "certificate verify failed",
            ),
        ):
            refused = RabbitBus(wrong)
            with pytest.raises(BusError, match=reason):
                refused.depth("train")
            refused.close()
        plain = pika.ConnectionParameters("127.0.0.1", urlsplit(node.url).port, socket_timeout=5)
        with pytest.raises(pika.exceptions.AMQPError):
            pika.BlockingConnection(plain)
    finally:
        node.kill()
        node.stop()


# ------------------------------------------------------------------------------------ the node


def test_a_node_keeps_its_data_and_its_address(rabbit_node: RabbitNode, connect: Connect) -> None:
    connect().publish([Outgoing(b"kept", queue="train")])
    url = rabbit_node.url
    rabbit_node.restart()
    assert rabbit_node.url == url
    assert take(connect().consume("train")).body == b"kept"


def test_a_node_listens_to_this_machine_only_and_keeps_its_secrets(rabbit_node: RabbitNode) -> None:
    folder = rabbit_node.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "password").stat().st_mode & 0o777 == 0o600
    assert (folder / "home" / ".erlang.cookie").stat().st_mode & 0o777 == 0o400
    ports = set(rabbit_node.ports.values())
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    ours = [address for address in listening if address.port in ports]
    assert {address.port for address in ours} == ports
    assert {address.ip for address in ours} <= {"127.0.0.1", "::1"}


STARTS = """
import sys
from pathlib import Path
from dpstream.deploy.devcluster.rabbitmq import RabbitNode
RabbitNode(Path(sys.argv[1])).start()
"""


def test_a_stopped_node_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_rabbitmq()
    node = RabbitNode(tmp_path / "node")
    starter = subprocess.Popen([sys.executable, "-c", STARTS, str(node.folder)])
    assert within(60, lambda: node.pid is not None)
    starter.kill()
    starter.wait()
    node.stop()  # though it has not written its file yet
    assert node.pid is None
    node.start()
    RabbitNode(tmp_path / "node").start()  # it runs: nothing to do
    assert node.pid is not None
    os.kill(node.pid, signal.SIGSTOP)  # it does not listen
    monkeypatch.setattr("dpstream.deploy.devcluster.rabbitmq.STOP_SECONDS", 1.0)
    RabbitNode(tmp_path / "node").stop()  # as another process would
    assert node.pid is None
    node.stop()
    leftovers = [
        cmdline
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(node.folder) in (cmdline := _read(path))
    ]
    assert leftovers == []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_a_missing_server_is_said_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.deploy.devcluster.rabbitmq.DEBIAN_SCRIPT", tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BusError, match=r"apt-get install .*rabbitmq-server"):
        RabbitNode(tmp_path / "node").start()
