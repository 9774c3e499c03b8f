"""From settings to a bus and a store: where adapters are chosen, by the URL's scheme.

Each is tried before it is handed out. One that is not up yet is waited for; one that refuses the
credentials is not.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.errors import BusError, DpstreamError, Refused
from dpstream.shared.logs import logger
from dpstream.shared.ports import Bus, Store
from dpstream.shared.runtime.retry import insist
from dpstream.shared.settings import BrokerSettings, StoreSettings, bucket_and_prefix
from dpstream.shared.store.folder import FolderStore

log = logger()

SECURE = {"http": "https", "amqp": "amqps"}
PLAIN = {secure: plain for plain, secure in SECURE.items()}
PORTS = {"http": 80, "https": 443}
"""Where a URL names none."""
ANSWER_SECONDS = 3.0
TLS_RECORDS = (b"\x15", b"\x16")
"""What an answer in TLS begins with: an alert, or a handshake."""


def connect_bus(settings: BrokerSettings, stopping: threading.Event | None = None) -> Bus:
    """The broker, waited for until `stopping` is set. Raises `Refused` for wrong credentials
    or certificates, and `BusError` when asked to stop before it answered."""
    from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings

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
        _reach(
            lambda: bus.depth(COORDINATOR),
            stopping,
            lambda: check_scheme("DPSTREAM_BROKER", wanted.address),
        )
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
    from dpstream.shared.store.s3 import S3Settings, S3Store

    bucket, prefix = parts
    if settings.store_endpoint is not None:  # boto3 would try again for a minute
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
    _reach(store.probe, stopping)
    return store


def check_scheme(variable: str, url: str) -> None:
    """`Refused` where the server at `url` speaks TLS and the scheme says it does not, or the other
    way round. Silence is no answer."""
    parts = urlsplit(url)
    answer = _answer_to_tls(str(parts.hostname), parts.port or PORTS[parts.scheme])
    if answer in TLS_RECORDS and parts.scheme in SECURE:
        meant, found = SECURE[parts.scheme], "TLS"
    elif answer and answer not in TLS_RECORDS and parts.scheme in PLAIN:
        meant, found = PLAIN[parts.scheme], "no TLS"
    else:
        return
    raise Refused(f"{variable}: {url}: the server there speaks {found}; write {meant}://")


def _answer_to_tls(host: str, port: int) -> bytes:
    """The first byte that the server answers to a TLS greeting; none when it does not."""
    context, greeting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    context.check_hostname = False  # nothing but the greeting is ever said
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
    explain: Callable[[], None] = lambda: None,
) -> None:
    """`call`, again and again during an outage; what is refused stays refused. `explain` may raise
    `Refused` with the reason of a failure."""

    def refused() -> Refused | None:
        try:
            _explained(call, explain)
        except Refused as error:
            return error
        return None

    refusal = insist(refused, stopping or threading.Event())
    if refusal is not None:
        raise refusal


def _explained(call: Callable[[], object], explain: Callable[[], None]) -> None:
    try:
        call()
    except BusError:
        explain()
        raise
