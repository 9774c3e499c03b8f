"""Clusters that are gone after the test, whatever it did to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from tests.support.deployments.deployed_cluster import Cluster, deployed


@pytest.fixture
def cluster(rabbit_node: RabbitNode, seaweed: SeaweedServer) -> Iterator[Cluster]:
    cluster = deployed(rabbit_node, seaweed)
    yield cluster
    cluster.close()
