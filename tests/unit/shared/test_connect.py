"""A scheme that does not fit the server is told at once, with the setting that is wrong."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from dpstream.shared.connect import check_scheme, connect_bus, connect_store
from dpstream.shared.errors import Refused, SpecError
from dpstream.shared.settings import BrokerSettings, StoreSettings, read_settings
from tests.support.servers.certificate_authority import Authority


@contextmanager
def served(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of a server that gives every client the same answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # the listener is closed
                while True:
                    client, _ = listener.accept()
                    with client, suppress(OSError):
                        answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*Authority(tmp_path).issue("server"))
    with served(lambda client: context.wrap_socket(client, server_side=True).close()) as port:
        yield port


@pytest.fixture
def plain() -> Iterator[int]:
    def answer(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(b"AMQP\0\0\x09\x01")

    with served(answer) as port:
        yield port


def store(endpoint: str) -> StoreSettings:
    return StoreSettings(store="s3://bucket", store_endpoint=endpoint)


def broker(url: str) -> BrokerSettings:
    return BrokerSettings(broker=SecretStr(url))


def test_plain_words_to_a_tls_port(tls: int) -> None:
    with pytest.raises(Refused) as caught:
        connect_store(store(f"http://127.0.0.1:{tls}"))
    where = f"http://127.0.0.1:{tls}: the server there speaks TLS; write https://"
    assert str(caught.value) == f"DPSTREAM_STORE_ENDPOINT: {where}"
    with pytest.raises(Refused) as caught:
        connect_bus(broker(f"amqp://user:word@127.0.0.1:{tls}"))
    where = f"amqp://127.0.0.1:{tls}: the server there speaks TLS; write amqps://"
    assert str(caught.value) == f"DPSTREAM_BROKER: {where}"


def test_tls_to_a_plain_port(plain: int) -> None:
    with pytest.raises(Refused, match=r"DPSTREAM_STORE_ENDPOINT: .* no TLS; write http://$"):
        connect_store(store(f"https://127.0.0.1:{plain}"))
    with pytest.raises(Refused, match=r"DPSTREAM_BROKER: .* no TLS; write amqp://$"):
        connect_bus(broker(f"amqps://user:word@127.0.0.1:{plain}"))


def test_what_fits_and_what_is_silent_passes(tls: int, plain: int) -> None:
    check_scheme("X", f"https://127.0.0.1:{tls}")
    check_scheme("X", f"amqp://127.0.0.1:{plain}")
    with served(socket.socket.close) as port:
        check_scheme("X", f"http://127.0.0.1:{port}")
        check_scheme("X", f"https://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["http://", "http://h:99999", "ftp://h", "http://user@h", "h:80"])
def test_an_endpoint_that_is_none(url: str) -> None:
    with pytest.raises(SpecError, match="DPSTREAM_STORE_ENDPOINT"):
        read_settings(StoreSettings, store="s3://bucket", store_endpoint=url)
