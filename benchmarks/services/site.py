"""A broker, an object store and services as processes of their own, for one benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.services.coordinator.ledger.ledger import read_segments
from dpstream.shared import messages as m
from dpstream.shared.connect import connect_bus, connect_store
from dpstream.shared.ports import Bus, Store
from dpstream.shared.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
BUCKET = "benchmarks"
PATIENCE = 1800.0
"""Seconds that anything may take."""


@dataclass(frozen=True)
class Servers:
    """Both, running."""

    node: RabbitNode
    server: SeaweedServer

    def site(self, name: str) -> Site:
        """Queues and a prefix of its own. Nothing else may have used the name."""
        self.server.make_bucket(BUCKET)
        return Site(
            Settings(
                broker=SecretStr(self.node.url),
                broker_prefix=f"{name}.",
                store=f"s3://{BUCKET}/{name}",
                store_endpoint=self.server.endpoint,
                store_region="us-east-1",
                store_addressing="path",
                store_access_key=SecretStr(self.server.access_key),
                store_secret_key=SecretStr(self.server.secret_key),
            )
        )


@contextmanager
def servers(folder: Path, fsync: bool) -> Iterator[Servers]:
    """A RabbitMQ node and an S3 server of our own; `fsync`: no PUT is answered before it is on
    the disk."""
    node, server = RabbitNode(folder / "broker"), SeaweedServer(folder / "store", fsync=fsync)
    try:
        node.start()
        server.start()
        yield Servers(node, server)
    finally:
        server.kill()
        node.stop()


@dataclass
class Site:
    settings: Settings
    crew: list[Employed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store: Store = connect_store(self.settings)
        self.bus: Bus = connect_bus(self.settings)

    def employ(self, role: str) -> None:
        """Start a process of the crew; on return it is at work."""
        self.crew.append(Employed.start(role, self.environment))

    def end(self) -> list[Report]:
        """Stop all processes, the first one last, and hear in order what they have to tell."""
        reports = [employed.end() for employed in reversed(self.crew)]
        self.crew.clear()
        return list(reversed(reports))

    def close(self) -> None:
        for employed in self.crew:
            employed.process.kill()
        self.bus.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a service is told."""
        given = self.settings.model_dump(exclude_defaults=True)
        plain = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in given.items()
        }
        return {f"{PREFIX}{name.upper()}": value for name, value in plain.items()}

    def said(self, campaign: str, kind: type[Any]) -> list[Any]:
        """Everything of a kind that a campaign's ledger has heard."""
        heard = (e.event for s in read_segments(self.store, campaign) for e in s.entries)
        return [event for event in heard if isinstance(event, kind)]

    def wait_for_training(self, campaign: str) -> float:
        """When every label of the campaign was in the ledger and its first training was asked
        for: monotonic clock, s."""
        subscription = self.bus.consume("train")
        try:
            while True:
                delivery = subscription.next(timeout=PATIENCE)
                arrived = time.monotonic()
                assert delivery is not None, "no training was asked for"
                delivery.ack()
                if m.Train.model_validate_json(delivery.body).campaign == campaign:
                    return arrived
        finally:
            subscription.cancel()


@contextmanager
def at(servers: Servers, name: str) -> Iterator[Site]:
    site = servers.site(name)
    try:
        yield site
    finally:
        site.close()


@dataclass(frozen=True)
class Report:
    """What a process of ours tells at its end: requests to the store by method, seconds of CPU
    at work."""

    requests: Mapping[str, int]
    cpu: float


@dataclass
class Employed:
    """A process that says a line when it is at work, and another at its end."""

    process: subprocess.Popen[str]

    @staticmethod
    def start(role: str, environment: Mapping[str, str]) -> Employed:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.services.crew", role],
            env={"PATH": os.defpath, **environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, f"{role} ended with status {process.wait()}"
        return Employed(process)

    def end(self) -> Report:
        self.process.terminate()
        said, _ = self.process.communicate(timeout=60)
        return Report(**json.loads(said))


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
