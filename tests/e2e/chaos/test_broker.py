"""A broker that is killed, loses its data, repeats messages, or delivers unreadable ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.services.coordinator.state import State, Task
from dpstream.shared import messages as m
from dpstream.shared.codec import MAX_BODY, encode, queue_of, topic_of
from dpstream.shared.ports import Outgoing
from dpstream.shared.values import Ref
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.campaign_simulator import submission
from tests.support.campaigns.small_campaign import labelled
from tests.support.deployments.deployed_cluster import (
    NAME,
    PATIENT,
    ROLES,
    SECONDS,
    WORKER_MODULE,
    Cluster,
    check,
    computations,
    deployed,
    plan,
)
from tests.support.deployments.deployment import QUEUES
from tests.support.servers.rabbit_server import require_rabbitmq

DAY = 86_400.0


# ------------------------------------------------------------------------------------ dies, forgets


def test_the_broker_is_killed_and_then_wiped(cluster: Cluster, rabbit_node: RabbitNode) -> None:
    cluster.start_services(simulated_seconds="0.3")
    cluster.submit(plan())
    cluster.until_state(labelled, "a label")
    rabbit_node.kill()
    rabbit_node.start()
    cluster.until_state(lambda state: state.committee.version, "a committee")
    rabbit_node.wipe()
    check(cluster, cluster.finish())
    assert not cluster.restarts


# --------------------------------------------------------------------------------- repeats itself


@pytest.mark.soak
def test_everything_is_delivered_twice(cluster: Cluster) -> None:
    given = {"lease_seconds": PATIENT, "http_port": "0"}
    cluster.keep_running(
        "coordinator",
        "tests.support.deployments.publish_twice",
        "dpstream.services.coordinator",
        **given,
    )
    for role in ROLES:
        cluster.keep_running(
            role, "tests.support.deployments.publish_twice", WORKER_MODULE, role, name=role
        )
    cluster.submit(plan())
    state = cluster.finish()
    check(cluster, state)
    assert computations(cluster).most_common(1)[0][1] == 1
    assert {task.command.attempt for task in state.tasks.values()} == {1}


@pytest.mark.soak
def test_a_day_later_everything_comes_once_more(cluster: Cluster) -> None:
    """All that was ever said, and every command, while the campaign is in its second round."""
    cluster.start_coordinator(lease_seconds=PATIENT)
    cluster.start_services(simulated_seconds="0.2")
    cluster.submit(plan())
    cluster.until_state(lambda state: state.committee.version > 1, "the second committee")
    old = [_a_day_older(message) for message in cluster.recorded(m.Message)]
    with closing(cluster.bus()) as bus:
        bus.publish([_addressed(message) for message in old])
    state = cluster.finish()
    check(cluster, state)
    assert computations(cluster).most_common(1)[0][1] == 1
    assert {task.command.attempt for task in state.tasks.values()} == {1}
    assert len(old) > 50


def _a_day_older(message: m.Message) -> m.Message:
    return message.model_copy(update={"time": message.time - DAY})


def _addressed(message: m.Message) -> Outgoing:
    if isinstance(message, m.Command):
        return Outgoing(encode(message), queue=queue_of(message))
    return Outgoing(encode(message), topic=topic_of(message))


# ------------------------------------------------------------------------------------- is poisoned


def _poison() -> Iterator[bytes]:
    yield b""
    yield b"\xff\x00 no JSON"
    yield b"[" * 50_000
    yield b'{"type": "label/9", "campaign": "world"}'
    yield encode(submission(plan())).replace(b'"campaign":"world"', b'"campaign":"../../etc"')
    yield json.dumps({"type": "task-claimed/1", "campaign": NAME, "attempt": "x"}).encode()
    yield b'{"pad": "' + b"x" * MAX_BODY + b'"}'


def _misplaced(label: m.Command) -> Iterator[Outgoing]:
    """Well-formed, but nothing that whoever hears it could do anything with."""
    event = encode(m.TaskClaimed(id="x", campaign=NAME, time=1.0, task="t", attempt=1, worker="w"))
    unknown = label.model_copy(update={"campaign": "unknown"})
    yield from (Outgoing(event, queue=queue) for queue in QUEUES)
    yield Outgoing(encode(unknown), queue="coordinator")
    yield Outgoing(event, topic="unknown.task-claimed")
    yield Outgoing(encode(unknown), topic=f"{NAME}.task-claimed")


@pytest.mark.soak
def test_poison_in_every_queue_blocks_none(cluster: Cluster) -> None:
    cluster.start_services(["trainer", "explorer"])
    cluster.submit(plan())
    (label, *_) = cluster.until_state(_labels, "commands")
    bodies = list(_poison())
    queues = (*QUEUES, "coordinator", "deadletters")
    with closing(cluster.bus()) as bus:
        for queue in queues:
            bus.publish([Outgoing(body, queue=queue) for body in bodies])
        bus.publish(list(_misplaced(label.command)))
        cluster.start_worker("labeler")
        state = cluster.finish()
        cluster.until(lambda: all(bus.depth(queue) == 0 for queue in queues), "empty queues")
    check(cluster, state)
    kept = {f"deadletters/{Ref.to('x', body).sha256}" for body in bodies}
    cluster.until(lambda: kept <= set(cluster.store.list("deadletters/")), "what was buried")
    assert not cluster.restarts


def _labels(state: State) -> list[Task]:
    return [task for task in state.tasks.values() if isinstance(task.command, m.Label)]


# ------------------------------------------------------------------------------------- is impatient

IMPATIENCE = 1.0
"""Seconds for which this broker lets a delivery be held."""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    require_rabbitmq()
    folder = tmp_path_factory.mktemp("impatient")
    timeout = f"{{consumer_timeout, {IMPATIENCE * 1000:.0f}}}, {{channel_tick_interval, 100}}"
    (folder / "advanced.config").write_text(f"[{{rabbit, [{timeout}]}}].\n")
    node = RabbitNode(folder)
    try:
        node.start()
        yield node
    finally:
        node.kill()
        node.stop()


@pytest.mark.soak
def test_a_label_outlasts_the_broker_s_patience(
    impatient: RabbitNode, seaweed: SeaweedServer, tmp_path: Path
) -> None:
    cluster = deployed(impatient, seaweed)
    try:
        _outlast(cluster, tmp_path / "gate")
    finally:
        cluster.close()


def _outlast(cluster: Cluster, gate: Path) -> None:
    cluster.start_coordinator(reissue_after="600", lease_seconds=PATIENT)
    cluster.start_services(["trainer", "explorer"])
    labeler = cluster.start_worker("labeler", simulated_gate=str(gate))
    cluster.submit(plan())
    task = cluster.until_state(_running_label, "a label to be begun").command
    with closing(cluster.bus()) as bus:
        waiting = cluster.until(lambda: bus.depth("label.tblite"), "further labels to wait")
        over = time.monotonic() + 4 * IMPATIENCE
        while time.monotonic() < over:
            assert bus.depth("label.tblite") == waiting  # ready, so not held by the busy worker
            time.sleep(IMPATIENCE / 4)
        held = bus.consume("label.tblite", prefetch=1)
        delivery = held.next(timeout=SECONDS)
        assert delivery is not None
        assert not delivery.redelivered
        assert held.next(timeout=SECONDS) is None  # ours was held for too long, and is taken back
    gate.touch()
    state = cluster.finish()
    check(cluster, state)
    assert computations(cluster).most_common(1)[0][1] == 1
    assert tasks_of(state)[task.task].attempt == 1
    assert not cluster.recorded(m.LeaseLapsed)
    assert [line for line in labeler.log_lines if "trying again" in line["event"]] == []


def _running_label(state: State) -> Any:
    return next((task for task in _labels(state) if task.status == "running"), None)
