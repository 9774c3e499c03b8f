"""A deployment with names of its own on a real broker and a real object store: coordinators as
processes, and one worker that completes every task at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dpstream.shared import messages as m
from dpstream.shared.codec import decode, encode, topic_of
from dpstream.shared.connect import connect_bus, connect_store
from dpstream.shared.ports import Bus, Delivery, Outgoing
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.settings import Settings
from tests.support.campaigns.campaign_simulator import CampaignSimulator
from tests.support.soak import SOAK

ROOT = Path(__file__).parents[3]
QUEUES = ("train", "explore", "judge", "screen", "label.tblite")
PROMPT = 180.0 if SOAK else 60.0
"""Seconds, the limit of every wait. Soak tests load the machine for long."""


def wait_until(met: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PROMPT
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@dataclass
class Started:
    """A process and what it has logged so far."""

    process: subprocess.Popen[str]
    log_lines: list[dict[str, Any]] = field(default_factory=list)
    other_lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.log_lines.append(json.loads(line))
            else:
                self.other_lines.append(line)

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log_lines if line["event"] == event]

    def wait_for(self, event: str) -> dict[str, Any]:
        wait_until(lambda: self.logged(event) or self.process.poll() is not None, event)
        assert self.logged(event), self.other_lines
        return self.logged(event)[0]

    def ended(self) -> int:
        status = self.process.wait(timeout=PROMPT)
        self._reader.join(timeout=PROMPT)
        return status


@dataclass
class Deployment:
    settings: Settings
    environment: dict[str, str]
    started: list[Started] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = connect_store(self.settings)

    def bus(self) -> Bus:
        return connect_bus(self.settings)

    def coordinator(self, **environment: str) -> Started:
        """A running coordinator."""
        started = self.start("dpstream.services.coordinator", **{"http_port": "0", **environment})
        started.wait_for("ready")
        return started

    def start(self, *module: str, **environment: str) -> Started:
        inherited = {key: os.environ[key] for key in ("PATH",)}
        given = {f"DPSTREAM_{name.upper()}": value for name, value in environment.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**inherited, **self.environment, **given},
            cwd=self.folder_of(*module),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started = Started(process)
        self.started.append(started)
        return started

    def folder_of(self, *module: str) -> Path:
        """Where the code of a module is."""
        return ROOT

    def api(self, **environment: str) -> tuple[Started, httpx.Client]:
        """A coordinator and a client of its API."""
        started = self.coordinator(http_port=str(free_port()), **environment)
        served = started.wait_for("serving")
        return started, httpx.Client(base_url=f"http://{served['host']}:{served['port']}")

    def dead_letter(self, command: m.Command) -> None:
        """Move a command to the dead letters, as a broker does after too many redeliveries."""
        with closing(self.bus()) as bus:
            bus.publish([Outgoing(encode(command), queue="deadletters")])

    @contextmanager
    def prompt_worker(self, fails: type[m.Command] | None = None) -> Iterator[None]:
        """Completes every task at once; tasks of the kind `fails` fail permanently."""
        over, errors = threading.Event(), list[BaseException]()
        worker = PromptWorker(self, CampaignSimulator(), fails, over)

        def guarded() -> None:
            try:
                worker.work()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=PROMPT)
        assert not errors, errors

    def close(self) -> None:
        for started in self.started:
            if started.process.poll() is None:
                started.process.kill()
            started.ended()


@dataclass
class PromptWorker:
    deployment: Deployment
    world: CampaignSimulator
    fails: type[m.Command] | None
    over: threading.Event

    def work(self) -> None:
        with closing(self.deployment.bus()) as bus:
            subscriptions = [bus.consume(queue, prefetch=4) for queue in QUEUES]
            while not self.over.is_set():
                for subscription in subscriptions:
                    delivery = subscription.next(timeout=0.02)
                    if delivery is not None:
                        self._do(bus, delivery)

    def _do(self, bus: Bus, delivery: Delivery) -> None:
        command, store = decode(delivery.body), self.deployment.store
        claimed, *results = self._answer(command)
        key = claim_uri(command.campaign, command.task, command.attempt)
        if store.create(key, encode(claimed)):
            bus.publish([Outgoing(encode(e), topic=topic_of(e)) for e in (claimed, *results)])
        delivery.ack()

    def _answer(self, command: Any) -> list[m.Message]:
        if isinstance(command, m.Select):
            body = self.deployment.store.get(command.pool.uri)
            self.world.manifests[command.pool.uri] = body.decode()
        if self.fails is None or not isinstance(command, self.fails):
            return self.world.answer(command)
        claimed = m.TaskClaimed(**CampaignSimulator.envelope(command, "claim"), worker="w")
        fields = CampaignSimulator.envelope(command, "failed")
        return [claimed, m.TaskFailed(**fields, permanent=True, reason="no", trace="here\nthere")]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
