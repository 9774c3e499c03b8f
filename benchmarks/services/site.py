"""A broker, an object store and the processes of the services for one benchmark."""

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
TIMEOUT = 1800.0
"""Longest wait for anything, s."""


@dataclass(frozen=True)
class Servers:
    """A running broker and object store."""

    node: RabbitNode
    server: SeaweedServer

    def site(self, name: str) -> Site:
        """A site with its own queues and prefix. The name must not have been used before."""
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
    """Starts a RabbitMQ node and an S3 server; `fsync`: every PUT is on the disk before the
    reply."""
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
    """Queues and a prefix of the store, and the processes that use them."""

    settings: Settings
    processes: list[ServiceProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store: Store = connect_store(self.settings)
        self.bus: Bus = connect_bus(self.settings)

    def start_process(self, role: str) -> None:
        """Starts a process; it is ready on return."""
        self.processes.append(ServiceProcess.start(role, self.environment))

    def end(self) -> list[Report]:
        """Stops all processes, the first one last; returns their reports in the order of their
        start."""
        reports = [process.end() for process in reversed(self.processes)]
        self.processes.clear()
        return list(reversed(reports))

    def close(self) -> None:
        for process in self.processes:
            process.popen.kill()
        self.bus.close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a service."""
        values = self.settings.model_dump(exclude_defaults=True)
        plain = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
        }
        return {f"{PREFIX}{name.upper()}": value for name, value in plain.items()}

    def events(self, campaign: str, kind: type[Any]) -> list[Any]:
        """The events of a class that are in a campaign's ledger."""
        events = (e.event for s in read_segments(self.store, campaign) for e in s.entries)
        return [event for event in events if isinstance(event, kind)]

    def wait_for_training(self, campaign: str) -> float:
        """Waits until every label of the campaign is in the ledger and its first training is
        issued; returns that time, monotonic clock, s."""
        subscription = self.bus.consume("train")
        try:
            while True:
                delivery = subscription.next(timeout=TIMEOUT)
                arrived = time.monotonic()
                assert delivery is not None, "no training was issued"
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
    """Figures of a process: requests to the store by method, CPU time while it served, s."""

    requests: Mapping[str, int]
    cpu: float


@dataclass
class ServiceProcess:
    """A process that prints one line when it is ready and its report when it ends."""

    popen: subprocess.Popen[str]

    @staticmethod
    def start(role: str, environment: Mapping[str, str]) -> ServiceProcess:
        popen = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.services.crew", role],
            env={"PATH": os.defpath, **environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert popen.stdout is not None
        line = popen.stdout.readline()
        assert line, f"{role} ended with status {popen.wait()}"
        return ServiceProcess(popen)

    def end(self) -> Report:
        self.popen.terminate()
        output, _ = self.popen.communicate(timeout=60)
        return Report(**json.loads(output))


def wait_until(holds: Callable[[], bool], failure: str) -> None:
    """Raises AssertionError with the text `failure` after `TIMEOUT`."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, failure
        time.sleep(0.05)
