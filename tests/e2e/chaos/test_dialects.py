"""A campaign on the services of a cloud, as their documentation describes them: a broker with
classic queues, few connections, heartbeats of a minute and unchecked users, and a store that speaks
OSS with keys that expire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.shared import messages as m
from dpstream.shared.settings import Settings
from tests.support.deployments.deployed_cluster import (
    PATIENT,
    ROLES,
    Cluster,
    check,
    deployed,
    plan,
)
from tests.support.servers.oss_gateway import OssGateway

HOST, USER, PASSWORD = "managed", "lab", "lab-password"
CONNECTIONS = 6
"""One of each process: coordinator, four workers and `dpstream submit`."""
HEARTBEAT = 60
"""Seconds, the shortest interval that such brokers accept."""
DROPPED = "the broker dropped a task; it is published again when it is due"
RETAINED = 5.0
"""Seconds after which the broker drops messages, in place of three days."""


@contextmanager
def managed(node: RabbitNode) -> Iterator[str]:
    """The URL of a virtual host that behaves like a managed broker: its user may state any
    `user_id`."""
    path = quote(HOST, "")
    node.manage("PUT", f"/api/vhosts/{path}")
    node.manage("PUT", f"/api/users/{USER}", {"password": PASSWORD, "tags": "impersonator"})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    node.manage("PUT", f"/api/permissions/{path}/{USER}", everything)
    node.manage("PUT", f"/api/vhost-limits/{path}/max-connections", {"value": CONNECTIONS})
    policy = {"pattern": ".*", "definition": {"message-ttl": int(RETAINED * 1000)}}
    node.manage("PUT", f"/api/policies/{path}/retention", policy | {"apply-to": "queues"})
    try:
        yield f"amqp://{USER}:{PASSWORD}@127.0.0.1:{node.ports['amqp']}/{path}"
    finally:
        node.manage("DELETE", f"/api/vhosts/{path}")
        node.manage("DELETE", f"/api/users/{USER}")


def on_managed_services(
    url: str, variables: dict[str, str], node: RabbitNode, server: SeaweedServer
) -> Cluster:
    """Its processes know nothing but what such a deployment has set."""
    cluster = deployed(node, server)
    broker = {"broker": url, "broker_queue_type": "classic", "broker_users": False}
    given = cluster.settings.model_dump(exclude_unset=True) | broker
    environment = {
        name: value
        for name, value in cluster.environment.items()
        if name not in ("DPSTREAM_STORE_ACCESS_KEY", "DPSTREAM_STORE_SECRET_KEY")
    }
    spoken = {f"DPSTREAM_{key.upper()}": str(value) for key, value in broker.items()}
    return Cluster(Settings(**given), environment | spoken | variables)


@pytest.mark.soak
def test_a_campaign_on_managed_services(
    rabbit_node: RabbitNode, seaweed: SeaweedServer, tmp_path: Path
) -> None:
    """Label tasks wait until the broker drops them. Then come two labelers, which may both create
    one claim; tokens are replaced all the time, a worker is killed, and there are no connections to
    spare."""
    gateway = OssGateway(seaweed, tmp_path)
    with managed(rabbit_node) as url, gateway.serving() as variables:
        cluster = on_managed_services(url, variables, rabbit_node, seaweed)
        try:
            _run(cluster, gateway, rabbit_node)
        finally:
            cluster.close()
    print(dict(gateway.answers))
    assert gateway.answers["issued"] > len(ROLES)
    assert gateway.answers["FileAlreadyExists"]
    assert gateway.answers["SlowDown"]
    assert not gateway.answers["SecondLevelDomainForbidden"]


def _run(cluster: Cluster, gateway: OssGateway, node: RabbitNode) -> None:
    coordinator = cluster.start_coordinator(lease_seconds=PATIENT)
    cluster.start_services(("trainer", "explorer"))
    cluster.submit(plan())
    cluster.until(lambda: coordinator.logged(DROPPED), "a dropped task")
    for name in ("labeler", "second"):
        cluster.start_worker("labeler", name, simulated_seconds="0.3")

    def labelled() -> list[m.LabelsDone]:
        gateway.replace_token()
        return cluster.recorded(m.LabelsDone)

    cluster.until(labelled, "a label")
    for connection in node.manage("GET", f"/api/vhosts/{HOST}/connections"):
        assert connection["timeout"] >= HEARTBEAT
    cluster.kill("labeler")
    check(cluster, cluster.finish())
    assert not cluster.recorded(m.TaskFailed)
