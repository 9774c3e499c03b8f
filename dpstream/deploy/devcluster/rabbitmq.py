"""A private RabbitMQ node: one folder, free loopback ports, its own cookie, user and password.

The node runs as the calling user and keeps running after its starter ends; any process can stop it.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from dpstream.deploy.devcluster.free_ports import free_ports, is_free
from dpstream.deploy.devcluster.processes import spawn
from dpstream.deploy.devcluster.waiting import within
from dpstream.shared.codec import MAX_BODY
from dpstream.shared.errors import BusError

SCRIPT = "rabbitmq-server"
DEBIAN_SCRIPT = Path("/usr/lib/rabbitmq/bin", SCRIPT)
"""The server itself; the command in the PATH switches to the user `rabbitmq`."""
USER = "dpstream"
PORTS = ("amqp", "management", "prometheus", "distribution", "mapper")
START_SECONDS, STOP_SECONDS = 90.0, 30.0
ERLANG_ARGUMENTS = (
    "-kernel inet_dist_use_interface {127,0,0,1} "
    "+sbwt none +sbwtdcpu none +sbwtdio none"  # no busy waiting: the cores belong to the engines
)
CLOSING_SECONDS = 5.0
"""The sockets of a killed process may be open for a moment after it has left /proc."""

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of a server that requires client certificates."""

    ca: Path
    cert: Path
    key: Path


def server_script() -> Path:
    """The script that starts the server. Raises BusError if RabbitMQ is not installed."""
    command = shutil.which(SCRIPT)
    if DEBIAN_SCRIPT.exists():
        return DEBIAN_SCRIPT
    if command is None:
        raise BusError(
            "rabbitmq-server is not installed: `apt-get install --no-install-recommends "
            "rabbitmq-server` on Debian or Ubuntu, or use a broker elsewhere"
        )
    return Path(command)


class RabbitNode:
    """The node of a folder, running or not. Its data is kept between starts."""

    def __init__(self, folder: Path, *, tls: TlsFiles | None = None) -> None:
        self.folder, self.tls = folder.resolve(), tls
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL with user and password."""
        scheme = "amqps" if self.tls else "amqp"
        return f"{scheme}://{USER}:{self.password}@127.0.0.1:{self.ports['amqp']}/"

    @property
    def management(self) -> int:
        """Port of the management API and its web page."""
        return self.ports["management"]

    @property
    def password(self) -> str:
        return (self.folder / "password").read_text()

    @property
    def pid(self) -> int | None:
        """Process id of the running node, or of its script during startup."""
        written = self._written_pid()
        if written is not None and self._is_node(written):
            return written
        return next(filter(self._is_node, psutil.pids()), None)

    @property
    def _pid_file(self) -> Path:
        return self.folder / "rabbitmq.pid"

    def _written_pid(self) -> int | None:
        with suppress(OSError, ValueError):
            return int(self._pid_file.read_text())
        return None

    @property
    def was_started(self) -> bool:
        """Whether the node was ever started."""
        return (self.folder / "ports.json").exists()

    def start(self) -> None:
        """Start the node unless it is running, and wait until it is usable. Raises BusError with
        the end of its log if that fails."""
        script = server_script()
        if self.pid is not None:
            self._wait_until_usable()
            return
        try:
            self._lay_out()
            self._launch(script)
        except OSError as error:
            raise BusError(f"{self.folder}: {error.strerror} ({error.filename})") from error
        self._wait_until_usable()

    def stop(self) -> None:
        """Stop the node and its port mapper, if running."""
        while (pid := self.pid) is not None:  # a starting script ignores SIGTERM and has no data
            if pid != self._written_pid() or not self._ends(pid, signal.SIGTERM):
                self._kill(pid)
        self._end_port_mapper()

    def kill(self) -> None:
        """SIGKILL, as a machine failure would."""
        pid = self.pid
        if pid is not None:
            self._kill(pid)

    def restart(self) -> None:
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Delete all queues with their messages, and dpstream's exchanges."""
        for kind in ("queues", "exchanges"):
            for item in self.manage("GET", f"/api/{kind}/%2F?disable_stats=true"):
                name = str(item["name"])
                if not name or name.startswith("amq."):
                    continue
                with suppress(urllib.error.HTTPError):  # exclusive, or already deleted
                    self.manage("DELETE", f"/api/{kind}/%2F/{quote(name, '')}")

    def purge(self) -> None:
        """Empty every queue."""
        for queue in self.manage("GET", "/api/queues/%2F?disable_stats=true"):
            with suppress(urllib.error.HTTPError):
                self.manage("DELETE", f"/api/queues/%2F/{quote(str(queue['name']), '')}/contents")

    def manage(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API as administrator. Returns the parsed JSON of the response."""
        credentials = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.management}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
            method=method,
        )
        with _direct.open(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    @property
    def ports(self) -> dict[str, int]:
        """Ports by listener, chosen at the first start."""
        ports = json.loads((self.folder / "ports.json").read_text())
        assert isinstance(ports, dict)
        return ports

    def _lay_out(self) -> None:
        """Create folders, secrets and configuration files."""
        for name in ("home", "mnesia", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        _write_once(self.folder / "home" / ".erlang.cookie", secrets.token_hex(20), 0o400)
        _write_once(self.folder / "password", secrets.token_hex(20), 0o600)
        (self.folder / "plugins").write_text("[rabbitmq_management,rabbitmq_prometheus].\n")

        if not (self.folder / "ports.json").exists():
            ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
            (self.folder / "ports.json").write_text(json.dumps(ports))
        config = self.folder / "rabbitmq.conf"
        config.touch(0o600)
        config.write_text("\n".join(self._config()) + "\n")

    def _config(self) -> list[str]:
        ports = self.ports
        lines = [
            f"default_user = {USER}",
            f"default_pass = {self.password}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {ports['management']}",
            "prometheus.tcp.ip = 127.0.0.1",
            f"prometheus.tcp.port = {ports['prometheus']}",
            "log.file.level = info",
            f"max_message_size = {2 * MAX_BODY}",
        ]
        if self.tls is None:
            return [*lines, f"listeners.tcp.local = 127.0.0.1:{ports['amqp']}"]
        return [
            *lines,
            "listeners.tcp = none",
            f"listeners.ssl.local = 127.0.0.1:{ports['amqp']}",
            f"ssl_options.cacertfile = {self.tls.ca}",
            f"ssl_options.certfile = {self.tls.cert}",
            f"ssl_options.keyfile = {self.tls.key}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
        ]

    def _environment(self) -> dict[str, str]:
        """The environment of the node; only PATH comes from the caller."""
        ports, folder = self.ports, self.folder
        return {
            "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(folder / "home"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(ports["mapper"]),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_NODENAME": "dpstream@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(ports["amqp"]),
            "RABBITMQ_DIST_PORT": str(ports["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(self._pid_file),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG_ARGUMENTS,
        }

    def _taken(self) -> list[str]:
        """Listeners whose port is in use, except the port mapper, which may outlive a killed
        node."""
        return [n for n, port in self.ports.items() if n != "mapper" and not is_free(port)]

    def _launch(self, script: Path) -> None:
        within(CLOSING_SECONDS, lambda: not self._taken())
        for name in self._taken():
            port = self.ports[name]
            raise BusError(
                f"{self.folder / 'ports.json'}: {name}: port {port} is in use; stop the program "
                "that uses it"
            )
        self._pid_file.unlink(missing_ok=True)
        output = self.folder / "log" / "output"
        output.write_bytes(b"")
        self._child = spawn([str(script)], self._environment(), self.folder, output)

    def _wait_until_usable(self) -> None:
        def has_ended() -> bool:
            return self._child is not None and self._child.poll() is not None

        up = within(START_SECONDS, lambda: has_ended() or self._is_usable()) and not has_ended()
        if not up:
            output = self._end_of_output()
            self.stop()
            raise BusError(f"{self.folder}: RabbitMQ did not start\n{output}")

    def _is_usable(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.ports["amqp"]), timeout=5):
                pass
            self.manage("GET", "/api/overview?disable_stats=true")
        except OSError:  # includes urllib's errors
            return False
        return self.pid is not None

    def _end_of_output(self) -> str:
        output = self.folder / "log" / "output"
        return output.read_text(errors="replace")[-2000:] if output.exists() else ""

    def _is_node(self, pid: int) -> bool:
        """Whether the process is this folder's node or its script. A pid file may be outdated, and
        the port mapper has the same environment, so both environment and command are checked."""
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.environ().get("RABBITMQ_PID_FILE") == str(self._pid_file):
                command = " ".join(process.cmdline())
                return str(self.folder) in command or SCRIPT in command
        return False

    def _kill(self, pid: int) -> None:
        if not self._ends(pid, signal.SIGKILL):
            raise BusError(f"RabbitMQ in {self.folder}: process {pid} does not stop; kill it")

    def _ends(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal, and return whether the node ends within the time limit."""
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(os.getpgid(pid), number)  # including its script
            else:
                os.kill(pid, number)
        gone = within(STOP_SECONDS, lambda: not self._is_node(pid))
        if gone and self._child is not None:
            self._child.wait(STOP_SECONDS)  # its script
        return gone

    def _end_port_mapper(self) -> None:
        epmd = shutil.which("epmd", path=self._environment()["PATH"])
        if epmd is not None:
            subprocess.run([epmd, "-kill"], env=self._environment(), capture_output=True)


def _write_once(file: Path, text: str, mode: int) -> None:
    if not file.exists():
        file.touch(0o600)
        file.write_text(text)
        file.chmod(mode)
