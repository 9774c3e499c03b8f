"""The users that `dpstream access` makes, at a real broker and a real S3 server. The S3 server is
started, and its bucket made, as compose.yaml says."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from dpstream.deploy.access_files import parse_deployment, variable, write_access
from dpstream.deploy.devcluster.free_ports import free_ports
from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import server_binary
from dpstream.shared.access import ROLES
from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings
from dpstream.shared.store.s3 import S3Settings, S3Store
from tests.support.servers.certificate_authority import Authority
from tests.support.servers.s3_server import require_seaweed

COMPOSE = yaml.safe_load(Path(__file__).parents[3].joinpath("compose.yaml").read_text())
VHOST = "access-test"
PREFIX = "group/dp"
USERS = ",".join((*ROLES, "vasp=labeler"))
"""One user per role, and a second one of labelers."""


@pytest.fixture(scope="module")
def access_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    out = tmp_path_factory.mktemp("access")
    write_access(parse_deployment(USERS, "dpstream", PREFIX, VHOST, ""), out)
    return out


@pytest.fixture(scope="module")
def secret_of(access_files: Path) -> Callable[[str, str], str]:
    """A user's password or key."""
    lines = (access_files / "passwords.env").read_text().splitlines()
    known = dict(line.split("=", 1) for line in lines if line[0] != "#")
    return lambda user, what: known[variable(user, what)]


@pytest.fixture(scope="module")
def access_vhost(rabbit_node: RabbitNode, access_files: Path) -> Iterator[str]:
    """A virtual host with the generated users; its URL but for user and password."""
    document = json.loads((access_files / "rabbitmq" / "definitions.json").read_text())
    rabbit_node.manage("POST", "/api/definitions", document)
    yield f"{rabbit_node.url.rpartition('@')[2].rstrip('/')}/{VHOST}"
    rabbit_node.manage("DELETE", f"/api/vhosts/{VHOST}")
    for user in document["users"]:
        rabbit_node.manage("DELETE", f"/api/users/{user['name']}")


@pytest.fixture(scope="module")
def url_of(access_vhost: str, secret_of: Callable[[str, str], str]) -> Callable[[str], str]:
    return lambda user: f"amqp://{user}:{secret_of(user, 'PASSWORD')}@{access_vhost}"


@pytest.fixture(scope="module")
def bus_of(url_of: Callable[[str], str]) -> Iterator[Callable[[str], RabbitBus]]:
    """A user's connection. The coordinator has been there first: it declares everything."""
    made: dict[str, RabbitBus] = {}

    def connect(user: str) -> RabbitBus:
        if user not in made:
            made[user] = RabbitBus(RabbitSettings(url=SecretStr(url_of(user))))
        return made[user]

    connect("coordinator").depth("coordinator")
    yield connect
    for each in made.values():
        each.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def access_endpoint(access_files: Path, authority: Authority) -> Iterator[str]:
    """The S3 server, started by the command of compose.yaml on free ports and with TLS, and its
    bucket, made by that of its `bucket`."""
    require_seaweed()
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = free_ports(2 * len(names))
    given = {f"-{name}": str(port) for name, port in zip(names, ports, strict=False)}
    given |= {f"-{name}.grpc": str(p) for name, p in zip(names, ports[len(names) :], strict=True)}
    given |= {"-s3.config": str(access_files / "seaweedfs" / "s3.json"), "-s3.ip.bind": "127.0.0.1"}
    cert, key = authority.issue("store")
    given |= {"-s3.cert.file": str(cert), "-s3.key.file": str(key)}
    with tempfile.TemporaryDirectory() as data:
        given |= {"-dir": data, "-s3.localSocket": f"{data}/s3", "-filer.localSocket": f"{data}/f"}
        command = COMPOSE["services"]["store"]["command"]
        arguments = [word for word in command if word.partition("=")[0] not in given]
        process = subprocess.Popen(
            [
                str(server_binary()),
                *arguments,
                *(f"{name}={value}" for name, value in given.items()),
            ],
            cwd=data,
            env={"PATH": os.defpath, "HOME": data, "GOMEMLIMIT": "300MiB"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"https://127.0.0.1:{given['-s3.port']}"
            _wait(f"{address}/healthz", process, authority)
            _wait(f"http://127.0.0.1:{given['-master.port']}/dir/assign", process, authority)
            _make_bucket(access_files, address, authority)
            yield address
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], authority: Authority) -> None:
    """Until it answers, without an error."""
    trust = ssl.create_default_context(cafile=authority.file)
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the S3 server ended"
        try:
            if b"error" not in direct.open(url, timeout=5).read():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} does not answer")


def _make_bucket(access_files: Path, endpoint: str, authority: Authority) -> None:
    service = COMPOSE["services"]["bucket"]
    code = service["entrypoint"][2].replace("http://store:8333", endpoint)
    code = code.replace("/access/label-signers.json", f"{access_files}/label-signers.json")
    known = dict(
        line.split("=", 1) for line in (access_files / "passwords.env").read_text().splitlines()[1:]
    )
    keys = {
        name: known[value.removeprefix("${").partition(":")[0]]
        for name, value in service["environment"].items()
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.defpath, "AWS_CA_BUNDLE": str(authority.file), **keys},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def store_of(
    access_endpoint: str, authority: Authority, secret_of: Callable[[str, str], str]
) -> Callable[[str], S3Store]:
    """The store as a user sees it."""

    @cache
    def opened(user: str, prefix: str = PREFIX) -> S3Store:
        return S3Store(
            S3Settings(
                bucket="dpstream",
                prefix=prefix,
                endpoint=access_endpoint,
                region="us-east-1",
                addressing="path",
                ca_file=authority.file,
                access_key=SecretStr(secret_of(user, "ACCESS_KEY")),
                secret_key=SecretStr(secret_of(user, "SECRET_KEY")),
                attempts=1,
            )
        )

    return opened
