"""The adapters that every contract is tested on. A new adapter is one more entry in a table.

An entry opens an empty broker or store and gives a function that makes one more connection to it.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings
from dpstream.shared.ports import Bus, Store
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.store.s3 import IF_NONE_MATCH, S3Store
from tests.support.servers.s3_server import BUCKET


@contextmanager
def in_process(_: pytest.FixtureRequest) -> Iterator[Callable[[], Bus]]:
    broker = Broker()
    yield lambda: InProcessBus(broker)


@contextmanager
def rabbitmq(request: pytest.FixtureRequest) -> Iterator[Callable[[], Bus]]:
    node: RabbitNode = request.getfixturevalue("rabbit_node")
    node.purge()
    yield lambda: RabbitBus(RabbitSettings(url=SecretStr(node.url)))


@contextmanager
def folder(_: pytest.FixtureRequest) -> Iterator[Callable[[], Store]]:
    with tempfile.TemporaryDirectory() as root:
        yield lambda: FolderStore(Path(root))


@contextmanager
def s3(request: pytest.FixtureRequest) -> Iterator[Callable[[], Store]]:
    server: SeaweedServer = request.getfixturevalue("seaweed")
    settings = server.settings(BUCKET, f"contract/{uuid.uuid4().hex}")
    probed = settings.model_copy(update={"create_by": IF_NONE_MATCH})
    yield lambda: S3Store(probed)


BUSES: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Callable[[], Bus]]]] = {
    "in-process": in_process,
    "rabbitmq": rabbitmq,
}
STORES: dict[
    str, Callable[[pytest.FixtureRequest], AbstractContextManager[Callable[[], Store]]]
] = {"folder": folder, "s3": s3}


def adapters(names: Iterable[str]) -> list[Any]:
    """Those that need a server are marked: `make check` leaves them to `make test`."""
    servers = {"rabbitmq", "s3"}
    return [
        pytest.param(name, marks=[pytest.mark.server] if name in servers else [])
        for name in sorted(names)
    ]


@pytest.fixture(params=adapters(BUSES))
def bus_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], Bus]]:
    """Makes connections to one empty broker; all are closed after the test."""
    made: list[Bus] = []
    with BUSES[request.param](request) as connect:

        def factory() -> Bus:
            made.append(connect())
            return made[-1]

        yield factory
        for bus in made:
            bus.close()


@pytest.fixture
def bus(bus_factory: Callable[[], Bus]) -> Bus:
    return bus_factory()


@pytest.fixture(params=adapters(STORES))
def store_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], Store]]:
    """Makes connections to one empty store."""
    with STORES[request.param](request) as connect:
        yield connect


@pytest.fixture
def store(store_factory: Callable[[], Store]) -> Store:
    return store_factory()
