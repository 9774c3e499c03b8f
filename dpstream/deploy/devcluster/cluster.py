"""A development cluster: broker, object store and services on this machine, in one folder.

Every part is a separate process that keeps running after its starter ends. `cluster.json` in the
folder records the processes, so that any later `Cluster` finds them again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from dpstream.deploy.access_files import (
    PASSWORDS,
    SIGNERS_FILE,
    parse_deployment,
    read_passwords,
    variable,
    with_pools,
    write_access,
)
from dpstream.deploy.devcluster.free_ports import free_ports, is_free
from dpstream.deploy.devcluster.processes import ProcessRecord, end, last_line, spawn
from dpstream.deploy.devcluster.rabbitmq import RabbitNode, server_script
from dpstream.deploy.devcluster.record import COORDINATOR, WORKERS, ClusterRecord, ServiceRecord
from dpstream.deploy.devcluster.seaweed import SeaweedServer, is_answered, server_binary
from dpstream.deploy.devcluster.waiting import within
from dpstream.services.coordinator.fleet.engines import each_once, engines_of
from dpstream.services.coordinator.fleet.pools import read_fleet
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings
from dpstream.shared.environment import PASSED
from dpstream.shared.errors import DpstreamError, FleetError, SpecError
from dpstream.shared.files import write_whole
from dpstream.shared.ports import Fleet
from dpstream.shared.runtime.confinement.children import HIDE, PORTS
from dpstream.shared.store.s3 import S3Store
from dpstream.shared.values import SIGNERS

OPERATOR = "operator"
USERS = ",".join((COORDINATOR, *WORKERS, f"{OPERATOR}=operator+generator"))
BUCKET = VHOST = "dpstream"
BESIDE_USERS = (BUCKET, "", VHOST, "")
"""The other arguments of `parse_deployment`."""
PARTS = ("access", "broker", "env", "logs", "scratch", "store", "cluster.json", "lock")
"""Everything that the folder may contain."""
READY_SECONDS, GRACE_SECONDS = 120.0, 30.0
OWN = ("DPSTREAM_BROKER", "DPSTREAM_STORE")
"""Prefixes of variables that only the cluster sets."""
FLEET_ENGINES = ("SLURM_CONF", "KUBECONFIG", "SSH_AUTH_SOCK", "HOME")
"""Where the commands and libraries of fleet engines find their settings, for the coordinator."""


@dataclass(frozen=True)
class ClusterProcess:
    """One running process as shown to the user. `log`: a file or a folder of files."""

    name: str
    pid: int
    port: int
    log: Path


class Cluster:
    """The cluster of a folder, running or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.broker = RabbitNode(self.folder / "broker")
        self.store = SeaweedServer(self.folder / "store")

    def up(
        self, workers: Mapping[str, int], settings: Mapping[str, str], stopping: threading.Event
    ) -> list[str]:
        """Start what is not running, and return its names.

        Returns once every service is ready or `stopping` is set; what has been started keeps
        running. Services that `workers` does not list keep their number. `settings` apply to
        services started now and, if they become ready, to later ones. Raises `DpstreamError`.
        """
        server_script()  # raises before anything is created
        server_binary()
        self._make_folder()
        with self._locked():
            known = self._read_record()
            wanted = {"workers": {**known.workers, **workers}}
            record = self._write_record(known.model_copy(update=wanted))
            given = {**known.settings, **settings}
            started = self._start_servers(given)
            self._declare_label_queues(given)
            record = self._stop_surplus(record)
            for name in record.wanted:
                if not record.is_running(name) and not stopping.is_set():
                    record = self._start(record, name, given)
                    started.append(name)
            self._wait(record, stopping)
            self._write_record(record.model_copy(update={"settings": given}))
            return started

    def down(self) -> list[str]:
        """Stop the services, then store and broker. Returns the names of those that were running.
        Raises `SpecError` if there is no cluster."""
        self._check_exists()
        with self._locked():
            return self._end_all()

    def wipe(self) -> list[str]:
        """`down`, and delete all data of the cluster."""
        self._check_exists()
        with self._locked():
            ended = self._end_all()
            for part in PARTS:
                shutil.rmtree(self.folder / part, ignore_errors=True)
                (self.folder / part).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self.folder.rmdir()
        return ended

    def parts(self) -> Iterator[ClusterProcess]:
        """All running processes."""
        if self.broker.pid is not None:
            log = self.broker.folder / "log"
            yield ClusterProcess("broker", self.broker.pid, self.broker.ports["amqp"], log)
        if self.store.pid is not None:
            yield ClusterProcess("store", self.store.pid, self.store.ports["s3"], self.store.log)
        for name, service in self._read_record().services.items():
            if service.process.is_running:
                yield ClusterProcess(name, service.process.pid, service.port, self._log(name))

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self._read_record().services[COORDINATOR].port}/"

    @property
    def environment_file(self) -> Path:
        """A shell file to `source`, so that `dpstream` commands use this cluster."""
        return self.folder / "env"

    # ----------------------------------------------------------------------------- broker and store

    def _start_servers(self, settings: Mapping[str, str]) -> list[str]:
        """Start broker and store with the users of all services and pools. Returns the names of
        those that were not running; the store starts again for a new user."""
        path = settings.get("DPSTREAM_FLEET")
        fleet = read_fleet(Path(path)) if path and Path(path).exists() else None
        place = parse_deployment(with_pools(USERS, fleet), *BESIDE_USERS)
        write_access(place, self.folder / "access")
        identities = self._document("seaweedfs/s3.json")
        self.store = SeaweedServer(
            self.store.folder,
            fsync=True,
            identities=[one for one in identities["identities"] if one["name"] in place.users],
            policies=identities["policies"],
        )
        if self.store.pid is not None and not self.store.knows_its_users():
            self.store.stop()
        started = ["broker"] if self.broker.pid is None else []
        started += ["store"] if self.store.pid is None else []
        _together(self._start_broker, self._start_store)
        self._write_environment(OPERATOR, self.environment_file)
        for user in sorted({*place.users} - {COORDINATOR, OPERATOR}):
            self._write_environment(user, self.folder / "access" / f"{user}.env")
        return started

    def _write_environment(self, user: str, file: Path) -> None:
        """A shell file with the access of a user to broker and store."""
        access = self._access(user).items()
        lines = (f"export {name}={shlex.quote(value)}" for name, value in access)
        write_whole(file, "\n".join((*lines, "")), 0o600)

    def _start_broker(self) -> None:
        self.broker.start()
        self.broker.manage("POST", "/api/definitions", self._document("rabbitmq/definitions.json"))

    def _start_store(self) -> None:
        self.store.start()
        signers = (self.folder / "access" / SIGNERS_FILE).read_bytes()
        self.store.make_bucket(BUCKET)
        S3Store(self.store.settings(BUCKET)).put(SIGNERS, signers)

    def _declare_label_queues(self, settings: Mapping[str, str]) -> None:
        """Declare the queues of all codes. Labelers consume from these queues but may not declare
        them, and the coordinator declares a queue only with the first task for its code."""
        labeler = LabelerSettings.model_construct(
            labeler_codes=tuple(CODES), labeler_class=settings.get("DPSTREAM_LABELER_CLASS") or None
        )
        url = SecretStr(self._access(COORDINATOR)["DPSTREAM_BROKER"])
        with closing(RabbitBus(RabbitSettings(url=url))) as bus:
            for queue in labeler.queues:
                bus.depth(queue)

    def _document(self, name: str) -> dict[str, list[dict[str, str]]]:
        document = json.loads((self.folder / "access" / name).read_text())
        assert isinstance(document, dict)
        return document

    def _access(self, user: str) -> dict[str, str]:
        """The environment variables that give a user access to broker and store."""
        passwords = read_passwords(self.folder / "access" / PASSWORDS)
        password = passwords[variable(user, "PASSWORD")]
        address = f"127.0.0.1:{self.broker.ports['amqp']}/{VHOST}"
        signing = passwords.get(variable(user, "SIGNING_KEY"))
        signs = {} if signing is None else {"DPSTREAM_LABELER_SIGNING_KEY": signing}
        return {
            "DPSTREAM_BROKER": f"amqp://{user}:{password}@{address}",
            "DPSTREAM_STORE": f"s3://{BUCKET}",
            "DPSTREAM_STORE_ENDPOINT": self.store.endpoint,
            "DPSTREAM_STORE_REGION": "us-east-1",
            "DPSTREAM_STORE_ADDRESSING": "path",
            "DPSTREAM_STORE_ACCESS_KEY": passwords[variable(user, "ACCESS_KEY")],
            "DPSTREAM_STORE_SECRET_KEY": passwords[variable(user, "SECRET_KEY")],
            **signs,
        }

    # --------------------------------------------------------------------------------- the services

    def _start(
        self, record: ClusterRecord, name: str, settings: Mapping[str, str]
    ) -> ClusterRecord:
        """Start one service and record it immediately."""
        kind = name.partition("-")[0]
        seen = (*PASSED, *(FLEET_ENGINES if kind == "coordinator" else ()))
        port = self._port(record, name)
        own = {
            "DPSTREAM_NAME": name,
            "DPSTREAM_SCRATCH": str(self.folder / "scratch"),
            "DPSTREAM_HTTP_HOST": "127.0.0.1",
            "DPSTREAM_HTTP_PORT": str(port),
            HIDE: ",".join(filter(None, (settings.get(HIDE), str(self.folder)))),
            PORTS: ",".join(map(str, {*self.broker.ports.values(), *self.store.ports.values()})),
        }
        environment = {
            **{each: os.environ[each] for each in seen if each in os.environ},
            **settings,
            **self._access(kind),
            **own,
        }
        command = [sys.executable, "-m", f"dpstream.services.{kind}"]
        child = spawn(command, environment, self.folder / "scratch", self._log(name))
        process = ProcessRecord.find(child.pid)
        if process is None:
            raise self._ended(name)
        services = {**record.services, name: ServiceRecord(process=process, port=port)}
        return self._write_record(record.model_copy(update={"services": services}))

    def _port(self, record: ClusterRecord, name: str) -> int:
        """The previous port if it is still free, otherwise a new one."""
        if name in record.services and is_free(record.services[name].port):
            return record.services[name].port
        return free_ports(1)[0]

    def _stop_surplus(self, record: ClusterRecord) -> ClusterRecord:
        """Stop the services that are no longer wanted."""
        kept = {name: one for name, one in record.services.items() if name in record.wanted}
        surplus = [one.process for name, one in record.services.items() if name not in kept]
        end(surplus, GRACE_SECONDS)
        return self._write_record(record.model_copy(update={"services": kept}))

    def _wait(self, record: ClusterRecord, stopping: threading.Event) -> None:
        """Wait until all services are ready or `stopping` is set."""
        waiting = dict(record.services)

        def is_over() -> bool:
            if stopping.is_set():
                return True
            for name, service in list(waiting.items()):
                if self._is_ready(name, service):
                    del waiting[name]
            return not waiting

        if not within(READY_SECONDS, is_over):
            name = next(iter(waiting))
            raise DpstreamError(
                f"{name} is not ready after {READY_SECONDS:g} s: {last_line(self._log(name))}; "
                f"see {self._log(name)}"
            )

    def _is_ready(self, name: str, service: ServiceRecord) -> bool:
        if not service.process.is_running:
            raise self._ended(name)
        return is_answered(f"http://127.0.0.1:{service.port}/readyz")

    def _ended(self, name: str) -> DpstreamError:
        log = self._log(name)
        return DpstreamError(f"{name} ended during startup: {last_line(log)}; see {log}")

    def _end_all(self) -> list[str]:
        """Ends the services, then the workers of the fleet, which no coordinator launches again,
        then the servers, which those workers need to release their tasks."""
        running = [part.name for part in self.parts()]
        end([service.process for service in self._read_record().services.values()], GRACE_SECONDS)
        left = self._end_fleet()
        if self.broker.was_started:
            _together(self.store.stop, self.broker.stop)
        if left:
            raise DpstreamError(f"workers may be left: {left}; run: dpstream fleet stop --now")
        return running

    def _end_fleet(self) -> str:
        """Ends the workers that the coordinator has started on demand. Returns what an engine that
        could not be asked says."""
        path = self._read_record().settings.get("DPSTREAM_FLEET")
        if path is None or not Path(path).exists():
            return ""
        problems = []
        for fleet, pools in each_once(engines_of(read_fleet(Path(path)), Path(path))):
            try:
                _end_launches(fleet)
            except FleetError as error:
                problems.append(f"{', '.join(pools)}: {error}")
        return "; ".join(problems)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    # ----------------------------------------------------------------------------------- the folder

    def _make_folder(self) -> None:
        """Create the folder. Raises `SpecError` if that fails, or if it contains other files."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            strangers = [each.name for each in self.folder.iterdir() if each.name not in PARTS]
            if strangers:
                raise SpecError(
                    f"--dir: {self.folder}: contains other files ({min(strangers)}); give an empty "
                    "folder or that of a cluster"
                )
            for part in ("logs", "scratch"):
                (self.folder / part).mkdir(exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise SpecError(f"--dir: {self.folder}: cannot be used: {error.strerror}") from error

    def _check_exists(self) -> None:
        if not self._record_file.exists():
            raise SpecError(f"--dir: {self.folder}: no cluster; dpstream up creates one")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock. Raises `SpecError` if another `up` or `down` holds it."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SpecError(
                    f"--dir: {self.folder}: another dpstream up or down is running"
                ) from error
            yield

    @property
    def _record_file(self) -> Path:
        return self.folder / "cluster.json"

    def _read_record(self) -> ClusterRecord:
        return ClusterRecord.read(self._record_file)

    def _write_record(self, record: ClusterRecord) -> ClusterRecord:
        write_whole(self._record_file, record.model_dump_json(indent=1) + "\n", 0o600)
        return record


def settings_for_services(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the caller's environment that are passed on to the services."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("DPSTREAM_") and not name.startswith(OWN)
    }


def _end_launches(fleet: Fleet) -> None:
    """Asks all workers to stop, and waits at most `GRACE_SECONDS` for them."""
    for launch in fleet.running():
        if launch.alive:
            fleet.end(launch)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(launch.alive for launch in fleet.running()) and time.monotonic() < deadline:
        time.sleep(0.1)


def _together(*calls: Callable[[], None]) -> None:
    """Run all calls concurrently and wait for them. Raises the exception of a failed one."""
    with ThreadPoolExecutor() as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()
