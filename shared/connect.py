"""Connects a process to the bus and the store that its settings name.

The URL's scheme selects the adapter. Each connection is tested before it is returned: a server that
does not answer yet is retried, one that refuses the credentials raises `Refused` at once.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.errors import BusError, DpstreamError, Refused, StoreError
from dpstream.shared.ports import Bus, Store
from dpstream.shared.runtime.retry import retry_outages
from dpstream.shared.settings import BrokerSettings, Settings, StoreSettings, bucket_and_prefix
from dpstream.shared.store.folder import FolderStore

SECURE = {"http": "https", "amqp": "amqps"}
PLAIN = {secure: plain for plain, secure in SECURE.items()}
PORTS = {"http": 80, "https": 443}
"""Default ports of a URL without one."""
ANSWER_SECONDS = 3.0
TLS_RECORDS = (b"\x15", b"\x16")
"""First byte of an answer in TLS: an alert or a handshake record."""
FOREVER = float("inf")


def connect(
    settings: Settings, stopping: threading.Event, patience: float = FOREVER
) -> tuple[Bus, Store] | None:
    """Bus and store; None if `stopping` is set before both answer. Raises `BusError` or
    `StoreError` if one of them does not answer within `patience` seconds."""
    try:
        store = connect_store(settings, stopping, patience)
        return connect_bus(settings, stopping, patience), store
    except Refused:
        raise
    except (BusError, StoreError):
        if stopping.is_set():
            return None
        raise


def connect_bus(
    settings: BrokerSettings,
    stopping: threading.Event | None = None,
    patience: float = FOREVER,
) -> Bus:
    """Connects to the broker and retries for `patience` seconds or until `stopping` is set. Raises
    `Refused` for wrong credentials or certificates, and `BusError` if the broker does not answer in
    this time."""
    from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings

    wanted = RabbitSettings(
        url=settings.broker,
        queue_type=settings.broker_queue_type,
        ca_file=settings.broker_ca_file,
        cert_file=settings.broker_cert_file,
        key_file=settings.broker_key_file,
        heartbeat=settings.broker_heartbeat,
        prefix=settings.broker_prefix,
        users=settings.broker_users,
    )
    try:
        wanted.tls()
    except OSError as error:
        raise Refused(f"DPSTREAM_BROKER_CA_FILE, _CERT_FILE or _KEY_FILE: {error}") from error
    bus = RabbitBus(wanted)
    try:
        explain = partial(check_scheme, "DPSTREAM_BROKER", wanted.address)
        _reach(lambda: bus.depth(COORDINATOR), stopping, patience, explain)
    except DpstreamError:
        bus.close()
        raise
    return bus


def connect_store(
    settings: StoreSettings,
    stopping: threading.Event | None = None,
    patience: float = FOREVER,
) -> Store:
    """Connects to the object store and retries for `patience` seconds or until `stopping` is set.
    Raises `Refused` if the store refuses the credentials, and `StoreError` if it does not answer in
    this time."""
    parts = bucket_and_prefix(settings.store)
    if parts is None:
        return FolderStore(Path(settings.store))
    from dpstream.shared.store.s3 import S3Settings, S3Store

    bucket, prefix = parts
    if settings.store_endpoint is not None:  # boto3 would retry for a minute
        check_scheme("DPSTREAM_STORE_ENDPOINT", settings.store_endpoint)
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
    _reach(store.probe, stopping, patience)
    return store


def check_scheme(variable: str, url: str) -> None:
    """Raises `Refused` if the server at `url` speaks TLS but the scheme is plain, or the other way
    round. Accepts a server that does not answer."""
    parts = urlsplit(url)
    answer = _answer_to_tls(str(parts.hostname), parts.port or PORTS[parts.scheme])
    if answer in TLS_RECORDS and parts.scheme in SECURE:
        scheme, spoken = SECURE[parts.scheme], "TLS"
    elif answer and answer not in TLS_RECORDS and parts.scheme in PLAIN:
        scheme, spoken = PLAIN[parts.scheme], "no TLS"
    else:
        return
    raise Refused(f"{variable}: {url}: the server there speaks {spoken}; write {scheme}://")


def _answer_to_tls(host: str, port: int) -> bytes:
    """The first byte of the server's answer to a TLS client hello; empty without an answer."""
    context, greeting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    context.check_hostname = False  # nothing but the client hello is ever sent
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), greeting).do_handshake()
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as line:
            line.sendall(greeting.read())
            return line.recv(1)
    except OSError:
        return b""


def _reach(
    call: Callable[[], object],
    stopping: threading.Event | None,
    patience: float,
    explain: Callable[[], None] = lambda: None,
) -> None:
    """Repeats `call` during an outage. `Refused` ends the attempts; `explain` may raise it with the
    reason of a failure."""

    def refused() -> Refused | None:
        try:
            _explained(call, explain)
        except Refused as error:
            return error
        return None

    refusal = retry_outages(refused, stopping or threading.Event(), patience)
    if refusal is not None:
        raise refusal


def _explained(call: Callable[[], object], explain: Callable[[], None]) -> None:
    try:
        call()
    except BusError:
        explain()
        raise
