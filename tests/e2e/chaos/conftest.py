"""Clusters that are gone after the test, whatever it did to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dpstream.devcluster.rabbitmq import RabbitNode
from dpstream.devcluster.seaweed import SeaweedServer
from tests.e2e.chaos.cluster import Cluster, deployed


@pytest.fixture
def cluster(rabbit_node: RabbitNode, seaweed: SeaweedServer) -> Iterator[Cluster]:
    cluster = deployed(rabbit_node, seaweed)
    yield cluster
    cluster.close()
