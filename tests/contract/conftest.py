"""The adapters that every contract is tested on. A new adapter is one more entry in a table.

An entry opens an empty broker or store and gives a function that makes one more connection to it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from shared.embedded import Broker, FolderStore, InProcessBus
from shared.ports import Bus, Store


@contextmanager
def in_process() -> Iterator[Callable[[], Bus]]:
    broker = Broker()
    yield lambda: InProcessBus(broker)


@contextmanager
def folder() -> Iterator[Callable[[], Store]]:
    with tempfile.TemporaryDirectory() as root:
        yield lambda: FolderStore(Path(root))


BUSES: dict[str, Callable[[], AbstractContextManager[Callable[[], Bus]]]] = {
    "in-process": in_process
}
STORES: dict[str, Callable[[], AbstractContextManager[Callable[[], Store]]]] = {"folder": folder}


@pytest.fixture(params=sorted(BUSES))
def bus_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], Bus]]:
    """Makes connections to one empty broker; all are closed after the test."""
    made: list[Bus] = []
    with BUSES[request.param]() as connect:

        def factory() -> Bus:
            made.append(connect())
            return made[-1]

        yield factory
        for bus in made:
            bus.close()


@pytest.fixture
def bus(bus_factory: Callable[[], Bus]) -> Bus:
    return bus_factory()


@pytest.fixture(params=sorted(STORES))
def store_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], Store]]:
    """Makes connections to one empty store."""
    with STORES[request.param]() as connect:
        yield connect


@pytest.fixture
def store(store_factory: Callable[[], Store]) -> Store:
    return store_factory()
