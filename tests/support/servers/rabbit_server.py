"""One real RabbitMQ node for the whole session (of each xdist worker), started when first asked
for. Where RabbitMQ is not installed its tests are skipped; in CI they fail."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dpstream.deploy.devcluster.rabbitmq import RabbitNode, server_script
from dpstream.shared.errors import BusError


@pytest.fixture(scope="session")
def rabbit_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A running node. A test that stops it starts it again."""
    require_rabbitmq()
    node = RabbitNode(tmp_path_factory.mktemp("rabbitmq"))
    try:
        node.start()
        yield node
    finally:
        node.kill()  # it takes seconds to go in order
        node.stop()


def require_rabbitmq() -> None:
    try:
        server_script()
    except BusError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
