"""A development cluster: broker, object store and services on this machine, all in one folder.

Every part is a process of its own that outlives whoever started it. The folder says which ones they
are, so that any later `Cluster` of it finds exactly those again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from dpstream.deploy.access_files import (
    PASSWORDS,
    parse_deployment,
    read_passwords,
    variable,
    write_access,
)
from dpstream.deploy.devcluster.free_ports import free_ports, is_free
from dpstream.deploy.devcluster.processes import ProcessRecord, end, last_line, spawn
from dpstream.deploy.devcluster.rabbitmq import RabbitNode, server_script
from dpstream.deploy.devcluster.record import COORDINATOR, WORKERS, ClusterRecord, ServiceRecord
from dpstream.deploy.devcluster.seaweed import SeaweedServer, is_answered, server_binary
from dpstream.deploy.devcluster.waiting import within
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings
from dpstream.shared.errors import DpstreamError, SpecError
from dpstream.shared.files import write_whole
from dpstream.shared.runtime.child_process import PASSED

OPERATOR = "operator"
USERS = ",".join((COORDINATOR, *WORKERS, f"{OPERATOR}=operator+generator"))
PLACE = parse_deployment(USERS, "dpstream", "", "dpstream", "")
PARTS = ("access", "broker", "env", "logs", "scratch", "store", "cluster.json", "lock")
"""All that is ever in the folder."""
READY_SECONDS, GRACE_SECONDS = 120.0, 30.0
OWN = ("DPSTREAM_BROKER", "DPSTREAM_STORE")
"""Beginnings of variables that only the cluster sets."""


@dataclass(frozen=True)
class ClusterProcess:
    """One process, for people. `log`: a file, or a folder of them."""

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
        """Start what is not running, and return its names once every service is ready, or as soon
        as `stopping` is set: what has been started until then goes on.

        `workers` of services not named stay as many as they were. `settings` are given to services
        started now and, once they did no harm, later. Raises `DpstreamError` for whatever is in the
        way.
        """
        server_script()  # both are missed before anything is made
        server_binary()
        self._make_folder()
        with self._alone():
            known = self._recall()
            wanted = {"workers": {**known.workers, **workers}}
            record = self._remember(known.model_copy(update=wanted))
            given = {**known.settings, **settings}
            started = self._start_servers()
            self._declare_label_queues(given)
            record = self._dismiss(record)
            for name in record.wanted:
                if not record.is_running(name) and not stopping.is_set():
                    record = self._start(record, name, given)
                    started.append(name)
            self._wait(record, stopping)
            self._remember(record.model_copy(update={"settings": given}))
            return started

    def down(self) -> list[str]:
        """End the services, then store and broker; the names of those that were running. Raises
        `SpecError` where there is no cluster."""
        self._check_there()
        with self._alone():
            return self._end_all()

    def wipe(self) -> list[str]:
        """`down`, and delete all that the cluster ever kept."""
        self._check_there()
        with self._alone():
            ended = self._end_all()
            for part in PARTS:
                shutil.rmtree(self.folder / part, ignore_errors=True)
                (self.folder / part).unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files are in it
            self.folder.rmdir()
        return ended

    def parts(self) -> Iterator[ClusterProcess]:
        """All that is running."""
        if self.broker.pid is not None:
            log = self.broker.folder / "log"
            yield ClusterProcess("broker", self.broker.pid, self.broker.ports["amqp"], log)
        if self.store.pid is not None:
            yield ClusterProcess("store", self.store.pid, self.store.ports["s3"], self.store.log)
        for name, service in self._recall().services.items():
            if service.process.is_running:
                yield ClusterProcess(name, service.process.pid, service.port, self._log(name))

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self._recall().services[COORDINATOR].port}/"

    @property
    def environment_file(self) -> Path:
        """To `source`: the commands of `dpstream` then speak to this cluster."""
        return self.folder / "env"

    # ----------------------------------------------------------------------------- broker and store

    def _start_servers(self) -> list[str]:
        """Both, with the users of all services; the names of those that were not running."""
        write_access(PLACE, self.folder / "access")
        identities = self._document("seaweedfs/s3.json")
        self.store = SeaweedServer(
            self.store.folder,
            fsync=True,
            identities=[one for one in identities["identities"] if one["name"] in PLACE.users],
            policies=identities["policies"],
        )
        started = [
            name
            for name, server in (("broker", self.broker), ("store", self.store))
            if server.pid is None
        ]
        _together(self._start_broker, self._start_store)
        lines = (
            f"export {name}={shlex.quote(value)}" for name, value in self._access(OPERATOR).items()
        )
        write_whole(self.environment_file, "\n".join((*lines, "")), 0o600)
        return started

    def _start_broker(self) -> None:
        self.broker.start()
        self.broker.manage("POST", "/api/definitions", self._document("rabbitmq/definitions.json"))

    def _start_store(self) -> None:
        self.store.start()
        self.store.make_bucket(PLACE.bucket)

    def _declare_label_queues(self, settings: Mapping[str, str]) -> None:
        """Those of all codes: a labeler waits at each of its own, and may not declare it; the
        coordinator does so only when it has a first task for that code."""
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
        """What one user of broker and store is told."""
        passwords = read_passwords(self.folder / "access" / PASSWORDS)
        password = passwords[variable(user, "PASSWORD")]
        address = f"127.0.0.1:{self.broker.ports['amqp']}/{PLACE.vhost}"
        return {
            "DPSTREAM_BROKER": f"amqp://{user}:{password}@{address}",
            "DPSTREAM_STORE": f"s3://{PLACE.bucket}",
            "DPSTREAM_STORE_ENDPOINT": self.store.endpoint,
            "DPSTREAM_STORE_REGION": "us-east-1",
            "DPSTREAM_STORE_ADDRESSING": "path",
            "DPSTREAM_STORE_ACCESS_KEY": passwords[variable(user, "ACCESS_KEY")],
            "DPSTREAM_STORE_SECRET_KEY": passwords[variable(user, "SECRET_KEY")],
        }

    # --------------------------------------------------------------------------------- the services

    def _start(
        self, record: ClusterRecord, name: str, settings: Mapping[str, str]
    ) -> ClusterRecord:
        """Start one service; it is in the folder's memory before anything else happens."""
        kind = name.partition("-")[0]
        port = self._port(record, name)
        own = {
            "DPSTREAM_NAME": name,
            "DPSTREAM_SCRATCH": str(self.folder / "scratch"),
            "DPSTREAM_HTTP_HOST": "127.0.0.1",
            "DPSTREAM_HTTP_PORT": str(port),
        }
        environment = {
            **{each: os.environ[each] for each in PASSED if each in os.environ},
            **settings,
            **self._access(kind),
            **own,
        }
        command = [sys.executable, "-m", f"dpstream.services.{kind}"]
        child = spawn(command, environment, self.folder / "scratch", self._log(name))
        process = ProcessRecord.find(child.pid)
        if process is None:
            raise self._ended(name)
        service = ServiceRecord(process=process, port=port)
        return self._remember(
            record.model_copy(update={"services": {**record.services, name: service}})
        )

    def _port(self, record: ClusterRecord, name: str) -> int:
        """That of the last time, if it is still to be had."""
        if name in record.services and is_free(record.services[name].port):
            return record.services[name].port
        return free_ports(1)[0]

    def _dismiss(self, record: ClusterRecord) -> ClusterRecord:
        """End the services that are no longer wanted."""
        kept = {name: one for name, one in record.services.items() if name in record.wanted}
        surplus = [one.process for name, one in record.services.items() if name not in kept]
        end(surplus, GRACE_SECONDS)
        return self._remember(record.model_copy(update={"services": kept}))

    def _wait(self, record: ClusterRecord, stopping: threading.Event) -> None:
        """Until all services are ready."""
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
        return DpstreamError(f"{name} ended at its start: {last_line(log)}; see {log}")

    def _end_all(self) -> list[str]:
        running = [part.name for part in self.parts()]
        end([service.process for service in self._recall().services.values()], GRACE_SECONDS)
        if self.broker.has_begun:
            _together(self.store.stop, self.broker.stop)
        return running

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    # ----------------------------------------------------------------------------------- the folder

    def _make_folder(self) -> None:
        """Raises `SpecError` where it cannot be, or holds something else."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            strangers = [each.name for each in self.folder.iterdir() if each.name not in PARTS]
            if strangers:
                raise SpecError(
                    f"--dir: {self.folder}: holds something else ({min(strangers)}); "
                    "name a folder of the cluster's own"
                )
            for part in ("logs", "scratch"):
                (self.folder / part).mkdir(exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise SpecError(f"--dir: {self.folder}: cannot be used: {error.strerror}") from error

    def _check_there(self) -> None:
        if not self._memory.exists():
            raise SpecError(f"--dir: {self.folder}: no cluster; dpstream up makes one")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time. Raises `SpecError` for the second."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SpecError(
                    f"--dir: {self.folder}: another dpstream up or down is at work"
                ) from error
            yield

    @property
    def _memory(self) -> Path:
        return self.folder / "cluster.json"

    def _recall(self) -> ClusterRecord:
        return ClusterRecord.read(self._memory)

    def _remember(self, record: ClusterRecord) -> ClusterRecord:
        write_whole(self._memory, record.model_dump_json(indent=1) + "\n", 0o600)
        return record


def settings_for_services(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a caller's environment that are handed on to the services."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("DPSTREAM_") and not name.startswith(OWN)
    }


def _together(*calls: Callable[[], None]) -> None:
    """All at once; returns, or raises what one of them raised, when all have ended."""
    with ThreadPoolExecutor() as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()
