"""Declares the exchanges and queues of `shared/bus/topology.py` at a RabbitMQ broker.

Existing ones are left unchanged. A user without the right to declare uses those that the
coordinator or an operator's definitions have declared.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from dpstream.shared.bus.rabbit_channel import Channel, Missing
from dpstream.shared.bus.rabbit_settings import RabbitSettings
from dpstream.shared.bus.topology import (
    DEAD,
    DEADLETTERS,
    EVENTS,
    OFFERS,
    TASKS,
    TOPOLOGY,
    Queue,
    declared,
)
from dpstream.shared.errors import BusError, Refused
from dpstream.shared.logs import logger

log = logger()

EXCHANGES = {EVENTS: "topic", OFFERS: "topic", TASKS: "direct", DEAD: "fanout"}


class Lender(Protocol):
    """A connection that lends channels."""

    @property
    def alive(self) -> bool: ...

    def channel(self) -> AbstractContextManager[Channel]: ...


class DeclaredQueues:
    """Exchanges and queues that one connection knows to exist at the broker."""

    def __init__(self, connection: Lender, settings: RabbitSettings) -> None:
        self._connection, self._settings = connection, settings
        self._lock = threading.RLock()
        self._known: set[str] = set()
        self._owned: set[str] = set()
        for exchange in EXCHANGES:
            if not self._exists("exchange", exchange):
                self._try(partial(self._make_exchange, exchange))
        for row in TOPOLOGY:
            if not row.name.endswith("*"):
                self.ensure(row.name)

    def ensure(self, queue: str) -> None:
        """Declare the queue if it does not exist."""
        with self._lock:
            if queue in self._known:
                return
            if not self._exists("queue", queue):
                if not self._try(partial(self._make_queue, queue)):
                    return
                self._settle()
            self._known.add(queue)

    def ensure_bound(self, queue: str) -> None:
        """Declare and bind the queue, as its consumer must."""
        with self._lock:
            if queue in self._owned:
                return
            try:
                self.ensure(queue)
                self._try(partial(self._make_queue, queue))
            except Missing:  # the exchange does not exist
                self.declare_again()
            self._owned.add(queue)

    def declare_again(self) -> None:
        """Declare and bind everything again: the broker was reset, or a declaration was
        interrupted."""
        log.info("declaring queues again", broker=self._settings.address)
        with self._lock:
            for exchange in EXCHANGES:
                self._try(partial(self._make_exchange, exchange))
            for queue in sorted({r.name for r in TOPOLOGY if r.name[-1] != "*"} | self._known):
                self._try(partial(self._make_queue, queue))
            self._settle()

    def _settle(self) -> None:
        """Create and delete one more queue after the durable ones. RabbitMQ 3.8 to 3.10 (bug
        10070), if killed within seconds of the declaration of its newest quorum queue, leaves that
        queue without a leader: its term is written to disk only together with the next queue's."""
        if self._settings.queue_type == "quorum":
            self._try(self._make_and_delete)

    def _make_and_delete(self) -> None:
        queue = self._settings.name(f"settling-{uuid.uuid4()}")
        with self._connection.channel() as channel:
            arguments = {"x-queue-type": "quorum", "x-expires": 60_000}
            channel.call("queue_declare", queue=queue, durable=True, arguments=arguments)
            channel.call("queue_delete", queue=queue)

    def bind(self, queue: str, pattern: str) -> None:
        """Declare a temporary queue, deleted with its last consumer or with this connection."""
        name = self._settings.name
        with self._connection.channel() as channel:
            channel.call("queue_declare", queue=name(queue), exclusive=True, auto_delete=True)
            channel.call(
                "queue_bind", queue=name(queue), exchange=name(EVENTS), routing_key=pattern
            )

    def _exists(self, kind: str, plain: str) -> bool:
        names = {kind: self._settings.name(plain)}
        try:
            with self._connection.channel() as channel:
                channel.call(f"{kind}_declare", **names, passive=True)
        except Missing:
            return False
        return True

    def _try(self, make: Callable[[], None]) -> bool:
        """Whether the declaration succeeded; False if this user lacks the right."""
        try:
            make()
        except Refused as error:
            log.debug("not declared", reason=str(error))
            return False
        return True

    def _make_exchange(self, plain: str) -> None:
        name, kind = self._settings.name(plain), EXCHANGES[plain]
        with self._connection.channel() as channel:
            channel.call("exchange_declare", exchange=name, exchange_type=kind, durable=True)

    def _make_queue(self, plain: str) -> None:
        row = declared(plain)
        assert row is not None
        name = self._settings.name
        self._declare(name(plain), queue_arguments(plain, self._settings))
        with self._connection.channel() as channel:
            for exchange, key in _bindings(row, plain):
                channel.call(
                    "queue_bind", queue=name(plain), exchange=name(exchange), routing_key=key
                )

    def _declare(self, queue: str, arguments: dict[str, Any]) -> None:
        try:
            with self._connection.channel() as channel:
                channel.call("queue_declare", queue=queue, durable=True, arguments=arguments)
        except BusError as error:
            if isinstance(error, (Refused, Missing)) or not self._connection.alive:
                raise
            log.warning(
                "queue exists with other arguments and is used as it is; delete it to have it "
                "declared again",
                queue=queue,
                reason=str(error),
            )


def queue_arguments(plain: str, settings: RabbitSettings) -> dict[str, Any]:
    """Arguments with which a queue of the topology is declared."""
    row = declared(plain)
    assert row is not None
    arguments: dict[str, Any] = {}
    if row.name != DEADLETTERS:
        arguments["x-dead-letter-exchange"] = settings.name(DEAD)
    if row.single:
        arguments["x-single-active-consumer"] = True
    if row.most is not None:
        arguments |= {"x-max-length": row.most, "x-overflow": "reject-publish"}
    if settings.queue_type == "quorum":
        arguments |= {"x-queue-type": "quorum", "x-delivery-limit": row.redeliveries}
        if row.name != DEADLETTERS:  # confirmed transfer, which requires this overflow policy
            arguments |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    return arguments


def _bindings(row: Queue, plain: str) -> Iterator[tuple[str, str]]:
    """Pairs of exchange and routing key."""
    yield TASKS, plain
    for pattern in row.patterns:
        yield row.exchange, pattern
    if plain == DEADLETTERS:
        yield DEAD, ""
