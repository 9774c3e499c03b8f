"""From settings to a bus and a store: where adapters are chosen, by the URL's scheme.

Each is tried before it is handed out. One that is not up yet is waited for; one that refuses the
credentials is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from shared.errors import DpstreamError, Refused
from shared.folder_store import FolderStore
from shared.outages import insist
from shared.ports import Bus, Store
from shared.settings import BrokerSettings, StoreSettings, bucket_and_prefix
from shared.topology import COORDINATOR

log = structlog.get_logger()


def connect_bus(settings: BrokerSettings, stopping: threading.Event | None = None) -> Bus:
    """The broker, waited for until `stopping` is set. Raises `Refused` for wrong credentials
    or certificates, and `BusError` when asked to stop before it answered."""
    from shared.rabbit import RabbitBus, RabbitSettings  # a folder on a laptop needs no pika

    wanted = RabbitSettings(
        url=settings.broker,
        queue_type=settings.broker_queue_type,
        ca_file=settings.broker_ca_file,
        cert_file=settings.broker_cert_file,
        key_file=settings.broker_key_file,
        heartbeat=settings.broker_heartbeat,
        prefix=settings.broker_prefix,
    )
    try:
        wanted.tls()
    except OSError as error:
        raise Refused(f"the broker's certificates cannot be used: {error}") from error
    bus = RabbitBus(wanted)
    try:
        _reach(lambda: bus.depth(COORDINATOR), stopping)
    except DpstreamError:
        bus.close()
        raise
    return bus


def connect_store(settings: StoreSettings, stopping: threading.Event | None = None) -> Store:
    """The object store, waited for until `stopping` is set. Raises `Refused` when it refuses the
    credentials, and `StoreError` when asked to stop before it answered."""
    parts = bucket_and_prefix(settings.store)
    if parts is None:
        return FolderStore(Path(settings.store))
    from shared.s3 import S3Settings, S3Store  # a folder on a laptop needs no boto3

    bucket, prefix = parts
    store = S3Store(
        S3Settings(
            bucket=bucket,
            prefix=prefix,
            endpoint=settings.store_endpoint,
            region=settings.store_region,
            addressing=settings.store_addressing,
            encryption=settings.store_encryption,
            ca_file=settings.store_ca_file,
            access_key=settings.store_access_key,
            secret_key=settings.store_secret_key,
        )
    )
    _reach(store.probe, stopping)
    return store


def _reach(call: Callable[[], object], stopping: threading.Event | None) -> None:
    """`call`, again and again during an outage; what is refused stays refused."""

    def refused() -> Refused | None:
        try:
            call()
        except Refused as error:
            return error
        return None

    refusal = insist(refused, stopping or threading.Event())
    if refusal is not None:
        raise refusal
