"""AWS Batch on this machine: jobs are processes, four at a time, and pass through the states that
the service gives them. Replies have at most a few entries per page. moto, which knows the forms of
all requests, lets every job succeed at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

CPUS = 4
PAGE = 2
QUEUE = "main"
STOP_SECONDS = 30.0
"""Between SIGTERM and SIGKILL of a container."""
Json = dict[str, Any]


@dataclass
class Container:
    """A job without children, or a child."""

    id: str
    index: int | None
    definition: Json
    environment: dict[str, str]
    status: str = "RUNNABLE"
    exit_code: int | None = None
    reason: str = ""
    stopped: float | None = None
    attempts: list[Json] = field(default_factory=list)
    """Those that have ended."""
    process: subprocess.Popen[bytes] | None = None


@dataclass
class Submitted:
    id: str
    request: Json
    children: list[Container]
    created: float = field(default_factory=time.time)

    @property
    def is_array(self) -> bool:
        return "arrayProperties" in self.request

    @property
    def counts(self) -> Counter[str]:
        return Counter(child.status for child in self.children)

    @property
    def status(self) -> str:
        if not self.is_array:
            return self.children[0].status
        if self.counts.keys() - {"SUCCEEDED", "FAILED"}:
            return "PENDING"
        return "FAILED" if self.counts["FAILED"] else "SUCCEEDED"


class BatchServer:
    """`secrets`: values by the names that `valueFrom` of a job definition gives."""

    def __init__(self, folder: str) -> None:
        self.folder, self.secrets = folder, dict[str, str]()
        self.jobs: dict[str, Submitted] = {}
        self.definitions: list[Json] = []
        self.requests: Counter[str] = Counter()
        self.lag = 0.0
        """Seconds after which a job is listed; that of the service lags behind as well."""
        self.lost_replies = 0
        """Submissions whose connection ends before the reply."""
        self.internal_errors = 0
        """Submissions that are accepted and answered with status 500."""
        self.queue: Json = {"state": "ENABLED", "status": "VALID"}
        self.queue["jobStateTimeLimitActions"] = [{"state": "RUNNABLE"}]
        self._lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_BATCH": f"http://127.0.0.1:{self._http.server_port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }

    def close(self) -> None:
        for job in self.jobs.values():
            for child in job.children:
                self._kill(child, signal.SIGKILL)
        self._http.shutdown()

    def answer(self, operation: str, request: Json) -> Json:
        with self._lock:
            self.requests[operation] += 1
            self._advance()
            reply: Json = getattr(self, f"_{operation}")(**request)
            self._advance()
            return reply

    def reclaim(self, name: str) -> None:
        """The machine of a running child is taken away."""
        with self._lock:
            child = self._child(name)
            self._kill(child, signal.SIGKILL)
            if child.process is not None:
                child.process.wait()
            child.reason = "Host EC2 (instance i-0) terminated."

    # ------------------------------------------------------------------------------ life of jobs

    def _advance(self) -> None:
        children = [child for job in self.jobs.values() for child in job.children]
        for child in children:
            if child.process is not None and (status := child.process.poll()) is not None:
                self._ended(child, status)
        for child in children:
            running = sum(each.status == "RUNNING" for each in children)
            if child.status == "RUNNABLE" and running < CPUS:
                self._start(child)

    def _ended(self, child: Container, status: int) -> None:
        child.process = None
        child.attempts.append(
            {"stoppedAt": round(time.time() * 1000), "statusReason": child.reason}
        )
        if child.reason.startswith("Host EC2"):  # the retry strategy of the definition
            child.status, child.reason = "RUNNABLE", ""
            return
        child.exit_code = status if status >= 0 else 128 - status
        child.status = "FAILED" if child.exit_code else "SUCCEEDED"
        child.reason = child.reason or "Essential container in task exited"
        child.stopped = time.time()

    def _start(self, child: Container) -> None:
        properties = child.definition["containerProperties"]
        variables = {each["name"]: each["value"] for each in properties.get("environment", ())}
        secrets = {
            each["name"]: self.secrets[each["valueFrom"]] for each in properties.get("secrets", ())
        }
        index = {} if child.index is None else {"AWS_BATCH_JOB_ARRAY_INDEX": str(child.index)}
        child.process = subprocess.Popen(
            properties["command"],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "AWS_BATCH_JOB_ID": child.id}
            | {"AWS_BATCH_JOB_ATTEMPT": str(len(child.attempts) + 1)}
            | (index | variables | secrets | child.environment),
            start_new_session=True,
        )
        child.status = "RUNNING"

    def _kill(self, child: Container, number: int) -> None:
        if child.process is not None and child.process.poll() is None:
            os.killpg(child.process.pid, number)

    def _child(self, name: str) -> Container:
        return next(
            child for job in self.jobs.values() for child in job.children if child.id == name
        )

    # -------------------------------------------------------------------------------- operations

    def _submitjob(self, **request: Any) -> Json:
        name, _, revision = request["jobDefinition"].partition(":")
        definition = next(
            each
            for each in self.definitions
            if (each["jobDefinitionName"], str(each["revision"])) == (name, revision)
        )
        size = request.get("arrayProperties", {}).get("size")
        if size is not None and not 2 <= size <= 10_000:
            raise ValueError("array size must be between 2 and 10000")
        given = request.get("containerOverrides", {}).get("environment", ())
        environment = {each["name"]: each["value"] for each in given}
        job = str(uuid.uuid4())
        names = [(job, None)] if size is None else [(f"{job}:{n}", n) for n in range(size)]
        children = [Container(each, n, definition, environment) for each, n in names]
        self.jobs[job] = Submitted(job, request, children)
        if self.lost_replies:
            self.lost_replies -= 1
            raise ConnectionAbortedError
        if self.internal_errors:
            self.internal_errors -= 1
            raise RuntimeError("time limit of a replica")
        return {"jobId": job, "jobName": request["jobName"], "jobArn": f"arn:{job}"}

    def _listjobs(self, **request: Any) -> Json:
        if "arrayJobId" in request:
            job = self.jobs[request["arrayJobId"]]
            state = request.get("jobStatus", "RUNNING")
            rows = [self._child_row(job, each) for each in job.children if each.status == state]
        else:
            (name,) = request["filters"][0]["values"]
            rows = [
                self._row(job)
                for job in self.jobs.values()
                if time.time() - job.created >= self.lag and self._is_named(job, name)
            ]
        first = int(request.get("nextToken", 0))
        more = {"nextToken": str(first + PAGE)} if len(rows) > first + PAGE else {}
        return {"jobSummaryList": rows[first : first + PAGE], **more}

    @staticmethod
    def _is_named(job: Submitted, name: str) -> bool:
        given: str = job.request["jobName"]
        return given == name or (name.endswith("*") and given.startswith(name[:-1]))

    def _describejobs(self, jobs: list[str]) -> Json:
        return {"jobs": [self._described(name) for name in jobs]}

    def _described(self, name: str) -> Json:
        job = self.jobs[name.partition(":")[0]]
        tags = {"tags": job.request["tags"]}
        if ":" in name or not job.is_array:
            child = self._child(name)
            return self._child_row(job, child) | {"attempts": child.attempts} | tags
        return self._row(job, counts=True) | tags

    def _row(self, job: Submitted, counts: bool = False) -> Json:
        name = {"jobId": job.id, "jobName": job.request["jobName"], "status": job.status}
        row: Json = {**name, "createdAt": round(job.created * 1000)}
        if job.is_array:
            size = job.request["arrayProperties"]["size"]
            row["arrayProperties"] = {"size": size}
            if counts:
                row["arrayProperties"]["statusSummary"] = dict(job.counts)
            stopped = [child.stopped for child in job.children]
            if job.status in ("SUCCEEDED", "FAILED"):
                row["stoppedAt"] = round(max(each or 0.0 for each in stopped) * 1000)
            return row
        return self._child_row(job, job.children[0]) | row

    def _child_row(self, job: Submitted, child: Container) -> Json:
        row: Json = {"jobId": child.id, "jobName": job.request["jobName"], "status": child.status}
        if child.index is not None:
            row["arrayProperties"] = {"index": child.index}
        if child.exit_code is not None:
            row["container"] = {"exitCode": child.exit_code}
        if child.stopped is not None:
            row["stoppedAt"] = round(child.stopped * 1000)
        return row | ({"statusReason": child.reason} if child.reason else {})

    def _canceljob(self, jobId: str, reason: str) -> Json:
        for child in self._named(jobId):
            if child.status == "RUNNABLE":
                child.status, child.reason, child.stopped = "FAILED", reason, time.time()
        return {}

    def _terminatejob(self, jobId: str, reason: str) -> Json:
        self._canceljob(jobId, reason)
        for child in self._named(jobId):
            if child.status == "RUNNING":
                child.reason = reason
                self._kill(child, signal.SIGTERM)
                threading.Timer(STOP_SECONDS, self._kill, (child, signal.SIGKILL)).start()
        return {}

    def _named(self, name: str) -> list[Container]:
        return self.jobs[name].children if name in self.jobs else [self._child(name)]

    def _registerjobdefinition(self, **request: Any) -> Json:
        name = request["jobDefinitionName"]
        same = sum(each["jobDefinitionName"] == name for each in self.definitions)
        self.definitions.append({**request, "revision": same + 1})
        return {"jobDefinitionName": name, "jobDefinitionArn": "arn", "revision": same + 1}

    def _describejobdefinitions(self, jobDefinitionName: str, **_: Any) -> Json:
        found = [
            each for each in self.definitions if each["jobDefinitionName"] == jobDefinitionName
        ]
        return {"jobDefinitions": [{**each, "jobDefinitionArn": "arn"} for each in found]}

    def _describejobqueues(self, jobQueues: list[str]) -> Json:
        found = [{"jobQueueName": name, **self.queue} for name in jobQueues if name == QUEUE]
        return {"jobQueues": found}


def _handler(server: BatchServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                reply, status = server.answer(self.path.rpartition("/")[2], json.loads(body)), 200
            except ConnectionAbortedError:
                self.close_connection = True
                return
            except (KeyError, ValueError, StopIteration) as error:
                reply, status = {"message": str(error)}, 400
            except RuntimeError as error:
                reply, status = {"message": str(error)}, 500
            data = json.dumps(reply).encode()
            self.send_response(status)
            if status != 200:
                kind = "ClientException" if status == 400 else "ServerException"
                self.send_header("x-amzn-errortype", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def aws_batch(tmp_path: Any) -> Iterator[BatchServer]:
    server = BatchServer(str(tmp_path))
    yield server
    server.close()
