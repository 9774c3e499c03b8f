"""A Kubernetes API server with a Job controller and one node whose pods are local processes.

It has what a fleet engine depends on, as the real server does it: uid and resourceVersion, 404, 409
and 422, optimistic locking, label selectors, pages, dry runs, quotas, deletion in the foreground,
pods that are pending, cannot be scheduled or have no image. What is tested against it is also run
against real API servers (`make k8s-test`).
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

CPUS = 4
"""Cores of the node."""
PATH = re.compile(
    r"/(?:api/v1|apis/batch/v1)/namespaces/([^/]+)/(jobs|pods|events|secrets)(?:/([^/]+))?"
)
TURN = 0.02

Object = dict[str, Any]


class HttpError(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


@dataclass
class KubeServer:
    folder: Path
    quota: int = 10**9
    """Jobs per namespace."""
    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    """By kind, namespace and name."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By uid of the pod."""
    launches: list[str] = field(default_factory=list)
    """Names of all Jobs that were created, also of deleted ones."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._versions = itertools.count(1)
        self._again: dict[str, float] = {}
        self._stopping = threading.Event()
        self._http: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()
        self._controller = threading.Thread(target=self._control, daemon=True)
        self._controller.start()

    # ------------------------------------------------------------------ starting and stopping

    def start(self) -> None:
        """Listens, at the same port as before."""
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """The API server is away; pods go on."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def close(self) -> None:
        self.stop()
        self._stopping.set()
        self._controller.join()
        for process in self.processes.values():
            _signal(process, signal.SIGKILL)
            process.wait()

    @property
    def kubeconfig(self) -> Path:
        path = self.folder / "kubeconfig"
        named = {"name": "fake"}
        content = {
            "clusters": [{**named, "cluster": {"server": f"http://127.0.0.1:{self._port}"}}],
            "users": [{**named, "user": {}}],
            "contexts": [{**named, "context": {"cluster": "fake", "user": "fake"}}],
            "current-context": "fake",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    # ------------------------------------------------------------------------- the API

    def answer(self, method: str, path: str, body: Any) -> Object:
        """The reply to a request. Raises HttpError."""
        url = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        found = PATH.fullmatch(url.path)
        if found is None:
            raise HttpError(404, "NotFound", "the server could not find the requested resource")
        namespace, kind, name = found[1], found[2], found[3] or ""
        with self._lock:
            if method == "POST":
                return self._create(kind, namespace, body, query)
            if not name:
                return self._list(kind, namespace, query)
            key = (kind, namespace, name)
            if key not in self.objects:
                raise HttpError(404, "NotFound", f'{kind} "{name}" not found')
            if method == "PATCH":
                return self._patch(key, body)
            if method == "DELETE" and query.get("propagationPolicy") == "Orphan":
                return self.objects.pop(key)
            if method == "DELETE":
                return self._delete(key, now=query.get("gracePeriodSeconds") == "0")
            return self.objects[key]

    def _create(self, kind: str, namespace: str, body: Object, query: dict[str, str]) -> Object:
        new = copy.deepcopy(body)
        name = new["metadata"]["name"]
        if kind == "jobs":
            self._validate(new)
            jobs = [key for key in self.objects if key[:2] == ("jobs", namespace)]
            if len(jobs) >= self.quota:
                message = f'jobs.batch "{name}" is forbidden: exceeded quota: compute-resources'
                raise HttpError(403, "Forbidden", message)
        if (kind, namespace, name) in self.objects:
            raise HttpError(409, "AlreadyExists", f'{kind} "{name}" already exists')
        new["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        new.setdefault("status", {})
        if query.get("dryRun") != "All":
            self.objects[kind, namespace, name] = new
            self.launches += [name] if kind == "jobs" else []
        return self._touch(new)

    def _validate(self, job: Object) -> None:
        name = job["metadata"]["name"]
        container = job["spec"]["template"]["spec"]["containers"][0]
        good = re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", name) and container.get("image")
        if not good or job["spec"]["parallelism"] < 0:
            raise HttpError(422, "Invalid", f'Job.batch "{name}" is invalid')

    def _list(self, kind: str, namespace: str, query: dict[str, str]) -> Object:
        wanted = dict(
            pair.split("=") for pair in filter(None, query.get("labelSelector", "").split(","))
        )
        items = [
            each
            for key, each in sorted(self.objects.items())
            if key[:2] == (kind, namespace)
            and wanted.items() <= each["metadata"].get("labels", {}).items()
        ]
        begin, size = int(query.get("continue", 0)), int(query.get("limit", len(items) or 1))
        following = str(begin + size) if begin + size < len(items) else ""
        return {"items": items[begin : begin + size], "metadata": {"continue": following}}

    def _patch(self, key: tuple[str, str, str], operations: list[Object]) -> Object:
        changed = copy.deepcopy(self.objects[key])
        for each in operations:
            *parents, last = each["path"].strip("/").split("/")
            target = changed
            for parent in parents:
                target = target[parent]
            target[last] = each["value"]
        if (
            changed["metadata"]["resourceVersion"]
            != self.objects[key]["metadata"]["resourceVersion"]
        ):
            raise HttpError(409, "Conflict", "the object has been modified")
        self.objects[key] = changed
        return self._touch(changed)

    def _delete(self, key: tuple[str, str, str], now: bool = False) -> Object:
        """In the foreground: the object exists until its pods, or its process, have ended. `now`:
        a process gets SIGKILL."""
        found = self.objects[key]
        if now and (process := self.processes.get(found["metadata"]["uid"])):
            _signal(process, signal.SIGKILL)
        if key[0] in ("jobs", "pods"):
            seconds = found["spec"].get("terminationGracePeriodSeconds", 0)
            found["metadata"].setdefault("deletionTimestamp", _now(seconds))
        else:
            del self.objects[key]
        return self._touch(found)

    def _touch(self, changed: Object) -> Object:
        changed["metadata"]["resourceVersion"] = str(next(self._versions))
        return changed

    # ------------------------------------------------------------------- controller and node

    def _control(self) -> None:
        while not self._stopping.wait(TURN):
            with self._lock:
                for pod in list(self._of("pods")):
                    self._run(pod)
                for job in list(self._of("jobs")):
                    self._reconcile(job)

    def _of(self, kind: str) -> Iterator[Object]:
        return (each for key, each in self.objects.items() if key[0] == kind)

    def _pods(self, job: Object) -> list[Object]:
        uid = job["metadata"]["uid"]
        return [p for p in self._of("pods") if p["metadata"]["labels"]["controller-uid"] == uid]

    def _reconcile(self, job: Object) -> None:
        """What the Job controller does."""
        metadata, status, spec = job["metadata"], job["status"], job["spec"]
        pods = self._pods(job)
        if "deletionTimestamp" in metadata:
            for pod in pods:
                self._delete(_key("pods", pod))
            if not pods:
                del self.objects[_key("jobs", job)]
            return
        if status.get("conditions"):
            return
        active = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
        active = [p for p in active if "deletionTimestamp" not in p["metadata"]]
        succeeded = sum(pod["status"]["phase"] == "Succeeded" for pod in pods)
        failed = sum(pod["status"]["phase"] == "Failed" for pod in pods)
        counts = {"active": len(active), "succeeded": succeeded, "failed": failed}
        if not counts.items() <= status.items():
            status |= counts
            self._touch(job)
        if spec.get("suspend"):
            return
        for pod in sorted(active, key=_reluctance)[: max(0, len(active) - spec["parallelism"])]:
            self._delete(_key("pods", pod))
        if succeeded and not active:
            status["conditions"] = [{"type": "Complete", "status": "True"}]
            self._touch(job)
        elif not succeeded and time.monotonic() >= self._again.get(metadata["uid"], 0):
            if failed > status.get("retried", 0):
                status["retried"] = failed
                self._again[metadata["uid"]] = time.monotonic() + min(failed, 10)
                return
            for _ in range(spec["parallelism"] - len(active)):
                self._create_pod(job)

    def _create_pod(self, job: Object) -> None:
        template = copy.deepcopy(job["spec"]["template"])
        name = f"{job['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        labels = template["metadata"]["labels"] | {"controller-uid": job["metadata"]["uid"]}
        pod = {
            "metadata": template["metadata"] | {"name": name, "labels": labels},
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        namespace = job["metadata"]["namespace"]
        self._create("pods", namespace, pod, {})
        self.objects["pods", namespace, name]["metadata"]["namespace"] = namespace

    def _run(self, pod: Object) -> None:
        """What scheduler and node do."""
        uid, status = pod["metadata"]["uid"], pod["status"]
        process = self.processes.get(uid)
        if process is not None and status["phase"] == "Running" and process.poll() is not None:
            code = process.returncode
            status["phase"] = "Failed" if code else "Succeeded"
            code = code if code >= 0 else 128 - code
            status["containerStatuses"] = [{"state": {"terminated": {"exitCode": code}}}]
            self._touch(pod)
        if "deletionTimestamp" in pod["metadata"]:
            self._stop(pod, process)
        elif status["phase"] == "Pending":
            self._start(pod)

    def _start(self, pod: Object) -> None:
        container, status = pod["spec"]["containers"][0], pod["status"]
        running = [p for p in self._of("pods") if p["status"]["phase"] == "Running"]
        if sum(map(_cpus, [*running, pod])) > CPUS:
            message = "0/1 nodes are available: 1 Insufficient cpu."
            status["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": message,
                }
            ]
            return
        pod["spec"]["nodeName"] = "node"
        if container["image"].startswith("nowhere"):
            waits = {
                "reason": "ImagePullBackOff",
                "message": f"Back-off pulling {container['image']}",
            }
            status["containerStatuses"] = [{"state": {"waiting": waits}}]
            return
        self.processes[pod["metadata"]["uid"]] = subprocess.Popen(
            container.get("command") or ["sleep", "300"],
            env=self._variables(pod),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        status["phase"] = "Running"
        self._touch(pod)

    def _variables(self, pod: Object) -> dict[str, str]:
        container = pod["spec"]["containers"][0]
        found = {"PATH": os.environ["PATH"]}
        for each in container.get("envFrom", ()):
            secret = self.objects[
                "secrets", pod["metadata"]["namespace"], each["secretRef"]["name"]
            ]
            found |= secret["stringData"]
        for each in container.get("env", ()):
            found[each["name"]] = each.get("value") or pod["metadata"]["name"]
        return found

    def _stop(self, pod: Object, process: subprocess.Popen[bytes] | None) -> None:
        if process is None or process.poll() is not None:
            del self.objects[_key("pods", pod)]
        elif "asked" not in pod["status"]:
            pod["status"]["asked"] = True
            _signal(process, signal.SIGTERM)


def _handler(server: KubeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            try:
                status, reply = 200, server.answer(self.command, self.path, body)
            except HttpError as error:
                status = error.status
                reply = {
                    "kind": "Status",
                    "reason": error.reason,
                    "message": str(error),
                    "code": status,
                }
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _any

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing is printed."""

    return Handler


def _key(kind: str, found: Object) -> tuple[str, str, str]:
    return kind, found["metadata"]["namespace"], found["metadata"]["name"]


def _cpus(pod: Object) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["requests"]["cpu"])


def _reluctance(pod: Object) -> int:
    """The Job controller deletes pods that have not started first."""
    return 2 if pod["status"]["phase"] == "Running" else int("nodeName" in pod["spec"])


def _now(later: float = 0) -> str:
    moment = datetime.fromtimestamp(time.time() + later, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
