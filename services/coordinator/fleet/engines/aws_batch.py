"""Workers as jobs of AWS Batch: a launch is one array job, or a plain job if it has one worker.

What stands is read from the list of jobs and the counts of each array. The children of an array
are read page by page, only if the counts have changed, and every two minutes.

The only module that uses Batch through boto3.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError

from dpstream.services.coordinator.fleet.plan import time_of
from dpstream.services.coordinator.fleet.pools import LIST_LAG, PoolSettings, worker_variables
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.ports import Launch

Job = Mapping[str, Any]
CONFIG = Config(
    connect_timeout=5, read_timeout=30, retries={"mode": "adaptive", "total_max_attempts": 4}
)
ONE_ATTEMPT = Config(retries={"mode": "standard", "total_max_attempts": 1})
"""For submissions: a second one after a lost reply would be another job."""
WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
ENDED = ("SUCCEEDED", "FAILED")
REMEMBERED = 600.0
"""Seconds for which an ended launch is listed; Batch keeps its jobs for days."""
READ_AGAIN = 120.0
"""Seconds after which the children of an array are read again though its counts are the same: one
may be in another attempt."""
MANY = 100
"""Jobs in one request, and most children that one call takes back."""
TAKEN_BACK, STOPPED = "taken back", "stopped"
"""Our reasons for ending a job, which Batch repeats."""
ATTEMPTS = 10
"""Most attempts of one worker on machines that were reclaimed; the most that Batch allows."""
DEPLOYMENT, DIGEST = "dpstream-deployment", "dpstream-definition"
"""Tags with the name of the deployment, and with the digest of a job definition."""
LIMITS = re.compile(r"TooManyRequests|Throttling|limit", re.IGNORECASE)
STUCK_QUEUE = (
    "aws batch update-job-queue --job-queue {queue} --job-state-time-limit-actions "
    "'reason=MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT,state=RUNNABLE,maxTimeSeconds=600,"
    "action=CANCEL'"
)


@dataclass
class AwsBatchFleet:
    """Jobs are named `dps-DEPLOYMENT-NAME`. All `pools` have the same region and queue. `logs` is
    not used: the jobs' log driver keeps the output of workers."""

    deployment: str
    pools: Mapping[str, PoolSettings]
    logs: Path
    _definitions: dict[str, str] = field(default_factory=dict)
    """Job definitions that are registered, by digest."""
    _children: dict[str, tuple[Mapping[str, int], float, list[Job]]] = field(default_factory=dict)
    """The children of each array that have started at least once, with the counts for which they
    were read, and when."""
    _lost: dict[str, float] = field(default_factory=dict)
    """When each launch was submitted that Batch may have accepted, though it did not say so."""

    # ------------------------------------------------------------------ what every engine does

    def running(self) -> Sequence[Launch]:
        jobs = self._jobs(f"{self._job_name('')}*", since=time.time() - REMEMBERED)
        known = {each["jobId"] for each in jobs} & self._children.keys()
        self._children = {name: self._children[name] for name in known}
        return list(map(self._launch, jobs))

    def launch(self, pool: str, count: int, name: str, *, warm: bool = False) -> None:
        if self._exists(name):
            return
        settings = self.pools[pool]
        request = {
            "jobName": self._job_name(name),
            "jobQueue": settings.aws_batch.queue,
            "jobDefinition": self._definition(pool),
            "containerOverrides": {"environment": [] if warm else self._idle_exit(pool)},
            "tags": self._tags(pool),
            "propagateTags": True,
        }
        if count > 1:  # an array has 2 to 10,000 children
            request["arrayProperties"] = {"size": count}
        if settings.aws_batch.share_identifier:
            request["shareIdentifier"] = settings.aws_batch.share_identifier
        self._submit(name, request)

    def retire(self, launch: Launch, most: int) -> int:
        """One by one, the last first; all of them at once if none has started."""
        for job in self._jobs(self._job_name(launch.name)):
            if launch.waiting == launch.alive <= most and not launch.ended:
                self._call("cancel_job", jobId=job["jobId"], reason=TAKEN_BACK)
                return launch.waiting
            if "arrayProperties" not in job:
                return 0  # it has started
            waiting = [each for state in WAITING for each in self._list(job["jobId"], state)]
            waiting.sort(key=lambda child: -int(child["arrayProperties"]["index"]))
            taken = waiting[: min(most, MANY)]
            for child in taken:
                self._call("cancel_job", jobId=child["jobId"], reason=TAKEN_BACK)
            return len(taken)
        return 0

    def end(self, launch: Launch) -> None:
        """Terminating an array cancels the children that wait, and stops the containers of the
        others: SIGTERM, and SIGKILL after 30 s."""
        for job in self._jobs(self._job_name(launch.name)):
            if job["status"] not in ENDED:
                self._call("terminate_job", jobId=job["jobId"], reason=STOPPED)

    def check(self, pool: str) -> None:
        """Whether the queue accepts jobs, and does not wait for ever for one that no machine
        fits."""
        queue = self.pools[pool].aws_batch.queue
        found = self._call("describe_job_queues", jobQueues=[queue])["jobQueues"]
        if not found:
            raise FleetError(f"job queue {queue}: does not exist")
        (given,) = found
        if (given["state"], given["status"]) != ("ENABLED", "VALID"):
            raise FleetError(f"job queue {queue}: {given['state']}, {given['status']}")
        if not given.get("jobStateTimeLimitActions"):
            command = STUCK_QUEUE.format(queue=queue)
            raise FleetError(f"job queue {queue}: jobs may stay RUNNABLE for ever: {command}")

    def render(self, pool: str) -> str:
        """The job definition as JSON."""
        return json.dumps(self._definition_request(pool), indent=1)

    # ------------------------------------------------------------------------ what is submitted

    def _exists(self, name: str) -> bool:
        """Raises FleetError while only a later list can tell."""
        if self._jobs(self._job_name(name)):
            return True
        now, lag = time.monotonic(), LIST_LAG["aws_batch"]
        self._lost = {each: at for each, at in self._lost.items() if now - at < lag}
        if name in self._lost:
            left = lag - (now - self._lost[name])
            raise FleetError(
                "AWS Batch: the reply to a submission was lost, and the job is not listed; it is "
                f"submitted again after {left:.0f} s"
            )
        return False

    def _submit(self, name: str, request: Mapping[str, Any]) -> None:
        try:
            self._call("submit_job", self._submitting_client, **request)
        except FleetError as error:
            if _may_be_accepted(error.__cause__):
                self._lost[name] = time.monotonic()
            raise

    def _job_name(self, name: str) -> str:
        return f"dps-{self.deployment}-{name}"

    def _tags(self, pool: str) -> dict[str, str]:
        own = {DEPLOYMENT: self.deployment, "dpstream-pool": pool}
        return {**self.pools[pool].aws_batch.tags, **own}

    def _idle_exit(self, pool: str) -> list[dict[str, str]]:
        """What warm workers lack; their definition is the same."""
        warm = worker_variables(pool, self.pools[pool], warm=True)
        usual = worker_variables(pool, self.pools[pool])
        return [{"name": key, "value": usual[key]} for key in usual.keys() - warm.keys()]

    def _definition(self, pool: str) -> str:
        """The job definition of a pool, registered only if there is none with this content."""
        request = self._definition_request(pool)
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]
        if digest not in self._definitions:
            name = request["jobDefinitionName"]
            known = self._pages(
                "describe_job_definitions",
                "jobDefinitions",
                jobDefinitionName=name,
                status="ACTIVE",
            )
            same = (each for each in known if each.get("tags", {}).get(DIGEST) == digest)
            found = next(same, None) or self._call(
                "register_job_definition",
                **{**request, "tags": {**request["tags"], DIGEST: digest}},
            )
            self._definitions[digest] = f"{name}:{found['revision']}"
        return self._definitions[digest]

    def _definition_request(self, pool: str) -> dict[str, Any]:
        settings = self.pools[pool]
        batch = settings.aws_batch
        resources = {
            "VCPU": settings.cpus,
            "MEMORY": _mebibytes(settings.memory or "0K"),
            "GPU": settings.gpus or None,
        }
        variables = worker_variables(pool, settings, warm=True) | settings.envs
        container: dict[str, Any] = {
            "image": settings.image,
            "command": list(settings.command) or None,
            "jobRoleArn": batch.job_role,
            "executionRoleArn": batch.execution_role,
            "environment": _pairs("value", variables),
            "secrets": _pairs("valueFrom", batch.secrets),
            "resourceRequirements": [
                {"type": kind, "value": str(value)}
                for kind, value in resources.items()
                if value is not None
            ],
        }
        longest = math.ceil(settings.lifetime + settings.longest_task + settings.grace)
        return {
            "jobDefinitionName": f"dpstream-{self.deployment}-{pool}",
            "type": "container",
            "containerProperties": {key: value for key, value in container.items() if value},
            # Only what a reclaimed machine ended starts again: the pool judges all other endings.
            "retryStrategy": {
                "attempts": ATTEMPTS,
                "evaluateOnExit": [
                    {"onStatusReason": "Host EC2*", "action": "RETRY"},
                    {"onReason": "*", "action": "EXIT"},
                ],
            },
            "timeout": {"attemptDurationSeconds": max(60, longest)},
            "platformCapabilities": ["EC2"],
            "propagateTags": True,
            "tags": self._tags(pool),
        }

    # ------------------------------------------------------------------------ reading what stands

    def _jobs(self, pattern: str, since: float = 0.0) -> list[Job]:
        """The jobs of this deployment with such a name that live or have ended `since` then,
        seconds since the epoch. Names alone do not tell `lab` from `lab-2`."""
        listed = self._pages(
            "list_jobs",
            "jobSummaryList",
            jobQueue=self._queue,
            filters=[{"name": "JOB_NAME", "values": [pattern]}],
        )
        names = [each["jobId"] for each in listed if each.get("stoppedAt", math.inf) > since * 1000]
        found = self._described(names)
        return [each for each in found if each.get("tags", {}).get(DEPLOYMENT) == self.deployment]

    def _list(self, array: str, state: str) -> Iterator[Job]:
        return self._pages("list_jobs", "jobSummaryList", arrayJobId=array, jobStatus=state)

    def _described(self, names: Sequence[str]) -> Iterator[Job]:
        for first in range(0, len(names), MANY):
            part = list(names[first : first + MANY])
            yield from self._call("describe_jobs", jobs=part)["jobs"]

    def _launch(self, job: Job) -> Launch:
        name = job["jobName"].removeprefix(self._job_name(""))
        processes, waiting = [job], 0
        if "arrayProperties" in job:
            counts = job["arrayProperties"].get("statusSummary", {})
            processes = self._started(job["jobId"], counts)
            waiting = sum(counts.get(state, 0) for state in WAITING)
        else:
            waiting = int(job["status"] in WAITING)
        at: dict[str, list[Job]] = {}
        for process in processes:
            at.setdefault(process["status"], []).append(process)
        ended = [*at.get("SUCCEEDED", ()), *at.get("FAILED", ())]
        return Launch(
            name,
            pool=name.rpartition("-")[0],
            waiting=waiting,
            starting=len(at.get("STARTING", ())),
            running=len(at.get("RUNNING", ())),
            ended=Counter(map(_ending, ended)),
            up=frozenset(
                _process(each, _ended_attempts(each) + 1) for each in at.get("RUNNING", ())
            ),
            gone=frozenset(
                _process(each, 1 + number)
                for each in processes
                for number in range(_ended_attempts(each))
            ),
            since=time_of(name),
            reason=job.get("statusReason", "") if waiting else "",
        )

    def _started(self, array: str, counts: Mapping[str, int]) -> list[Job]:
        """The children that do not wait, and those that wait again. Only their descriptions have
        their attempts."""
        before, read_at, children = self._children.get(array, ({}, 0.0, []))
        now = time.monotonic()
        if before != counts or now - read_at > READ_AGAIN:
            states = ("STARTING", "RUNNING", *ENDED)
            some = [state for state in states if counts.get(state)]
            started = [each for state in some for each in self._list(array, state)]
            names = {each["jobId"] for each in (*children, *started)}
            children = list(self._described(sorted(names)))
            self._children[array] = (dict(counts), now, children)
        return children

    # ------------------------------------------------------------------------------- the service

    @property
    def _queue(self) -> str:
        return next(iter(self.pools.values())).aws_batch.queue

    @cached_property
    def _client(self) -> Any:
        return self._connected(CONFIG)

    @cached_property
    def _submitting_client(self) -> Any:
        return self._connected(CONFIG.merge(ONE_ATTEMPT))

    def _connected(self, config: Config) -> Any:
        region = next(iter(self.pools.values())).aws_batch.region
        return boto3.session.Session(region_name=region).client("batch", config=config)

    def _pages(self, operation: str, key: str, **request: Any) -> Iterator[Job]:
        following: dict[str, str] = {}
        while True:
            page = self._call(operation, **request, **following)
            yield from page[key]
            if not page.get("nextToken"):
                return
            following = {"nextToken": page["nextToken"]}

    def _call(self, operation: str, client: Any = None, /, **request: Any) -> Any:
        """Raises FleetError with the words of AWS."""
        try:
            return getattr(client or self._client, operation)(**request)
        except ClientError as error:
            words = f"AWS Batch: {error}"
            is_limit = LIMITS.search(words) and not _may_be_accepted(error)
            raise (FleetLimit if is_limit else FleetError)(words) from error
        except BotoCoreError as error:
            raise FleetError(f"AWS Batch does not answer: {error}") from error


def _may_be_accepted(error: BaseException | None) -> bool:
    """Whether a request with this error was sent and not refused. TLS may fail at any time."""
    if isinstance(error, ClientError):
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"]) >= 500
    return isinstance(error, HTTPClientError | SSLError)


def _pairs(key: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, key: value} for name, value in values.items()]


def _mebibytes(size: str) -> int:
    return math.ceil(int(size[:-1]) * 1024.0 ** ("KMGT".index(size[-1]) - 1))


def _process(job: Job, attempt: int) -> str:
    """The name that a worker takes from its job: `ID.3-1` in the first attempt of the child
    `ID:3`."""
    return f"{job['jobId'].replace(':', '.')}-{attempt}"


def _ended_attempts(job: Job) -> int:
    """How many attempts have ended; all but the last with their machines."""
    stopped = [n for n, each in enumerate(job.get("attempts", ()), 1) if "stoppedAt" in each]
    return max([*stopped, int(job["status"] in ENDED)])


def _ending(job: Job) -> str:
    """The exit status, or why Batch ended the job, in its words."""
    if job["status"] == "SUCCEEDED":
        return "0"
    reason = str(job.get("statusReason", ""))
    status = job.get("container", {}).get("exitCode")
    if reason.startswith("Host EC2"):
        return "HostTerminated"
    if status is not None:
        return str(status)
    if reason in (TAKEN_BACK, STOPPED):
        return "CANCELLED"
    if "exceeded timeout" in reason:
        return "TIMEOUT"
    return reason[:80] or "FAILED"
