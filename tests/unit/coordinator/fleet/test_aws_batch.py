"""Workers on AWS Batch: moto checks the requests, and a server of our own lets jobs live."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)

from dpstream.deploy.rights import fleet_policy
from dpstream.services.coordinator.fleet.engines import aws_batch
from dpstream.services.coordinator.fleet.engines.aws_batch import (
    AwsBatchFleet,
    _ending,
    _may_be_accepted,
)
from dpstream.services.coordinator.fleet.plan import Demand
from dpstream.services.coordinator.fleet.pools import LIST_LAG, FleetFile, PoolSettings
from dpstream.services.coordinator.fleet.reconciler import Reconciler
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.shared.errors import FleetError, FleetLimit
from dpstream.shared.store.folder import FolderStore
from tests.support.servers.batch_server import PAGE, BatchServer
from tests.support.servers.fleets import NAME, STAYING, aws_batch_pool, end_all, until

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"serves": ["train"], "max": 9, "memory": "1G"}


def pool(*command: str, **changes: Any) -> PoolSettings:
    return PoolSettings(**aws_batch_pool(*(command or STAYING), **(SETTINGS | changes)))


@pytest.fixture
def server(aws_batch: BatchServer, monkeypatch: pytest.MonkeyPatch) -> BatchServer:
    for key, value in aws_batch.environment.items():
        monkeypatch.setenv(key, value)
    return aws_batch


def fleet(folder: Path, **changes: Any) -> AwsBatchFleet:
    return AwsBatchFleet("lab", {"cpu": pool(**changes)}, folder)


# -------------------------------------------------------------------------- as moto understands it


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of moto's server, which has a queue."""
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for key in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_BATCH"):
        monkeypatch.setenv(key, url)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    config = json.dumps({"batch": {"use_docker": False}}).encode()
    with urllib.request.urlopen(f"{url}/moto-api/config", config, timeout=10):
        pass
    role = boto3.client("iam").create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]
    client = boto3.client("batch")
    machines = client.create_compute_environment(
        computeEnvironmentName="machines",
        type="UNMANAGED",
        state="ENABLED",
        serviceRole=role["Arn"],
    )
    order = [{"order": 1, "computeEnvironment": machines["computeEnvironmentArn"]}]
    client.create_job_queue(
        jobQueueName="main", state="ENABLED", priority=1, computeEnvironmentOrder=order
    )
    yield client
    server.stop()


def test_moto_accepts_every_request(moto: Any, tmp_path: Path) -> None:
    """There every job succeeds at once, terminated or not."""
    found = fleet(tmp_path, gpus=1, aws_batch={"tags": {"group": "chem"}})
    for name, count in ((NAME, 3), ("cpu-1", 1)):
        found.launch("cpu", count, name)
    found.launch("cpu", 1, NAME)
    assert {launch.name for launch in found.running()} == {NAME, "cpu-1"}
    for launch in found.running():
        found.retire(launch, 1)
        found.end(launch)
    (definition,) = moto.describe_job_definitions(status="ACTIVE")["jobDefinitions"]
    strategy = definition["retryStrategy"]["evaluateOnExit"]
    assert [(each["action"].upper(), each.get("onStatusReason")) for each in strategy] == [
        ("RETRY", "Host EC2*"),
        ("EXIT", None),
    ]
    resources = definition["containerProperties"]["resourceRequirements"]
    assert {each["type"]: each["value"] for each in resources} == {
        "VCPU": "1",
        "MEMORY": "1024",
        "GPU": "1",
    }


# ------------------------------------------------------------------------------------ life of jobs


def test_a_job_definition_is_registered_only_if_it_differs(
    server: BatchServer, tmp_path: Path
) -> None:
    """Also by the next coordinator; warm workers share it."""
    for number, found in enumerate([fleet(tmp_path)] * 2 + [fleet(tmp_path)]):
        found.launch("cpu", 1, f"cpu-{number}", warm=number == 1)
    assert server.requests["registerjobdefinition"] == 1
    fleet(tmp_path, cpus=2).launch("cpu", 1, "cpu-9")
    assert [each["revision"] for each in server.definitions] == [1, 2]
    end_all(found)


def test_what_is_not_listed_yet_is_not_launched_again(server: BatchServer, tmp_path: Path) -> None:
    server.lag = 2.0
    batch = fleet(tmp_path)
    pools = {"cpu": aws_batch_pool(*STAYING, **SETTINGS)}
    (tmp_path / "fleet.yaml").write_text(json.dumps({"deployment": "lab", "pools": pools}))
    reconciler = Reconciler(
        tmp_path / "fleet.yaml",
        FolderStore(tmp_path / "store"),
        make_engines=lambda *_: {"cpu": batch},
    )
    reconciler.start()
    for _ in range(5):
        reconciler.post({"train": Demand(waiting=3, seconds=600.0)})
        reconciler.turn()
    assert (batch.running(), len(server.jobs)) == ([], 1)
    until(batch, lambda launch: launch.alive == 3, name=_name_of_the_only(server))
    end_all(batch)


def _name_of_the_only(server: BatchServer) -> str:
    (job,) = server.jobs.values()
    return str(job.request["jobName"]).removeprefix("dps-lab-")


def test_a_submission_whose_reply_was_lost_is_not_repeated_while_the_list_lags(
    server: BatchServer, tmp_path: Path
) -> None:
    """Nor does it pass for accepted, so that the reconciler counts the failures."""
    server.lag, server.lost_replies = 600.0, 1
    found = fleet(tmp_path)
    with pytest.raises(FleetError, match="does not answer"):
        found.launch("cpu", 1, NAME)
    _not_repeated(found, server)


def test_a_submission_that_was_answered_with_a_server_error_is_not_repeated_either(
    server: BatchServer, tmp_path: Path
) -> None:
    server.lag, server.internal_errors = 600.0, 1
    found = fleet(tmp_path)
    with pytest.raises(FleetError, match="time limit of a replica") as raised:
        found.launch("cpu", 1, NAME)
    assert not isinstance(raised.value, FleetLimit), "which would give the next one another name"
    _not_repeated(found, server)


def _not_repeated(found: AwsBatchFleet, server: BatchServer) -> None:
    with pytest.raises(FleetError, match=r"reply to a submission was lost.* again after \d+ s"):
        found.launch("cpu", 1, NAME)
    server.lag = 0.0
    found.launch("cpu", 1, NAME)
    assert len(server.jobs) == 1
    end_all(found)


def test_a_submission_that_was_lost_for_good_is_repeated_once_the_list_cannot_lag(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.lost_replies = 1
    found = fleet(tmp_path)
    with pytest.raises(FleetError):
        found.launch("cpu", 1, NAME)
    server.jobs.clear()
    monkeypatch.setitem(LIST_LAG, "aws_batch", 0.0)  # type: ignore[arg-type]
    found.launch("cpu", 1, NAME)
    until(found, lambda launch: launch.alive == 1)
    end_all(found)


def test_a_submission_that_was_not_sent_is_tried_again(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And fails again, so that the pool pauses."""
    found = fleet(tmp_path)
    assert found.running() == []
    monkeypatch.setenv("AWS_ENDPOINT_URL_BATCH", "http://127.0.0.1:9")  # of submissions alone
    for _ in range(2):
        with pytest.raises(FleetError, match="Could not connect"):
            found.launch("cpu", 1, NAME)
    assert server.jobs == {}


ADDRESS = {"endpoint_url": "https://batch", "error": "x"}


@pytest.mark.parametrize(
    ("error", "may_be_accepted"),
    [
        (EndpointConnectionError(**ADDRESS), False),
        (ConnectTimeoutError(**ADDRESS), False),
        (ProxyConnectionError(proxy_url="http://proxy", error="x"), False),
        (NoCredentialsError(), False),
        (ReadTimeoutError(**ADDRESS), True),
        (ConnectionClosedError(**ADDRESS), True),
        (SSLError(**ADDRESS), True),
        (ClientError({"ResponseMetadata": {"HTTPStatusCode": 429}}, "SubmitJob"), False),
        (ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "SubmitJob"), True),
    ],
    ids=lambda each: type(each).__name__,
)
def test_which_submissions_may_have_been_accepted(error: Exception, may_be_accepted: bool) -> None:
    assert _may_be_accepted(error) == may_be_accepted


def test_a_refused_submission_may_be_repeated(server: BatchServer, tmp_path: Path) -> None:
    found = fleet(tmp_path)
    with pytest.raises(FleetError, match="array size"):
        found.launch("cpu", 20_000, NAME)
    found.launch("cpu", 1, NAME)
    until(found, lambda launch: launch.alive == 1)
    end_all(found)


def test_one_worker_is_a_plain_job_and_several_are_an_array(
    server: BatchServer, tmp_path: Path
) -> None:
    found = fleet(tmp_path)
    found.launch("cpu", 1, "cpu-1")
    found.launch("cpu", 2 * PAGE + 1, "cpu-2")
    one, several = sorted(found.running(), key=lambda launch: launch.name)
    assert (one.alive, several.alive) == (1, 2 * PAGE + 1)
    assert [job.is_array for job in server.jobs.values()] == [False, True]
    end_all(found)


def test_a_deployment_has_no_jobs_of_one_whose_name_begins_with_its_own(
    server: BatchServer, tmp_path: Path
) -> None:
    one, other = (AwsBatchFleet(name, {"cpu": pool()}, tmp_path) for name in ("lab", "lab-2"))
    for found in (one, other):
        found.launch("cpu", 2, NAME)
    launch = until(one, lambda launch: launch.running == 2)
    assert list(one.running()) == [launch]
    one.end(replace(launch, name=f"2-{NAME}"))
    end_all(one)
    assert until(other, lambda launch: launch.running == 2).pool == "cpu"
    end_all(other)


def test_children_are_read_only_if_the_counts_have_changed(
    server: BatchServer, tmp_path: Path
) -> None:
    """Requests per turn do not depend on how many workers there are."""
    found = fleet(tmp_path)
    found.launch("cpu", 4, NAME)
    until(found, lambda launch: launch.running == 4)
    before = server.requests.copy()
    for _ in range(3):
        found.running()
    assert server.requests - before == {"listjobs": 3, "describejobs": 3}
    end_all(found)


def test_a_worker_of_a_reclaimed_machine_starts_again(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two lists, so that the counts are the same."""
    monkeypatch.setattr(aws_batch, "READ_AGAIN", 0.0)
    found = fleet(tmp_path)
    found.launch("cpu", 2, NAME)
    until(found, lambda launch: launch.running == 2)
    (job,) = server.jobs.values()
    first, other = (f"{child.id.replace(':', '.')}-1" for child in job.children)
    server.reclaim(job.children[0].id)
    launch = until(found, lambda launch: launch.running == 2)
    assert launch.ended == {}
    assert launch.up == {first.removesuffix("1") + "2", other}, "of the second attempt"
    assert launch.gone == {first}, "its tasks need not wait for their leases"
    assert fleet(tmp_path).running() == [launch], "as the next coordinator sees it"
    end_all(found)


def test_a_reclaimed_worker_that_waits_again_has_gone(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_batch, "READ_AGAIN", 0.0)
    found = fleet(tmp_path)
    found.launch("cpu", 5, NAME)
    launch = until(found, lambda launch: (launch.running, launch.waiting) == (4, 1))
    (job,) = server.jobs.values()
    job.children = job.children[::-1]  # the one that waits starts in place of the reclaimed one
    server.reclaim(job.children[1].id)
    again = until(found, lambda each: each.up != launch.up and each.waiting == 1)
    assert again.gone == launch.up - again.up
    assert len(again.gone) == 1
    end_all(found)


def test_a_plain_job_is_known_by_its_attempts_too(server: BatchServer, tmp_path: Path) -> None:
    found = fleet(tmp_path)
    found.launch("cpu", 1, NAME)
    until(found, lambda launch: launch.running == 1)
    (job,) = server.jobs
    server.reclaim(job)
    launch = until(found, lambda launch: bool(launch.gone))
    assert (launch.gone, launch.ended) == ({f"{job}-1"}, {})
    end_all(found)


def test_what_waits_is_cancelled_and_what_runs_is_terminated(
    server: BatchServer, tmp_path: Path
) -> None:
    found = fleet(tmp_path)
    found.launch("cpu", 6, NAME)
    launch = until(found, lambda each: (each.running, each.waiting) == (4, 2))
    assert found.retire(launch, 1) == 1
    assert server.requests["terminatejob"] == 0
    launch = until(found, lambda each: each.waiting == 1)
    assert (launch.running, launch.ended) == (4, {"CANCELLED": 1})
    found.end(launch)
    launch = until(found, lambda each: each.alive == 0)
    assert launch.ended == {"CANCELLED": 2, "75": 4}


def test_check_refuses_a_queue_in_which_jobs_may_wait_for_ever(
    server: BatchServer, tmp_path: Path
) -> None:
    found = fleet(tmp_path)
    found.check("cpu")
    server.queue["state"] = "DISABLED"
    with pytest.raises(FleetError, match="job queue main: DISABLED, VALID"):
        found.check("cpu")
    server.queue = {"state": "ENABLED", "status": "VALID"}
    with pytest.raises(FleetError, match="RUNNABLE for ever: aws batch update-job-queue"):
        found.check("cpu")
    with pytest.raises(FleetError, match="job queue nowhere: does not exist"):
        fleet(tmp_path, aws_batch={"queue": "nowhere"}).check("cpu")


@pytest.mark.parametrize(
    ("job", "ending"),
    [
        ({"status": "SUCCEEDED"}, "0"),
        ({"status": "FAILED", "container": {"exitCode": 75}}, "75"),
        ({"statusReason": "Host EC2 (instance i-0) terminated."}, "HostTerminated"),
        ({"statusReason": "taken back"}, "CANCELLED"),
        ({"statusReason": "Job attempt duration exceeded timeout"}, "TIMEOUT"),
        ({"statusReason": "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"}, "MISCONFIGURATION:JOB"),
    ],
)
def test_how_a_job_ended(job: dict[str, Any], ending: str) -> None:
    assert _ending({"status": "FAILED", **job}).startswith(ending)


def test_a_worker_knows_the_attempt_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"BROKER": "amqp://x", "STORE": "/tmp"}.items():
        monkeypatch.setenv(f"DPSTREAM_{key}", value)
    monkeypatch.setenv("AWS_BATCH_JOB_ID", "0af-1:3")
    monkeypatch.setenv("AWS_BATCH_JOB_ATTEMPT", "2")
    assert LabelerSettings().process == "0af-1.3-2"
    monkeypatch.setenv("DPSTREAM_PROCESS", "cpu-1")
    assert LabelerSettings().process == "cpu-1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": None}, "memory: missing; the engine aws_batch needs it"),
        ({"aws_batch": {"queue": ""}}, "aws_batch.queue: missing"),
        ({"envs": {"API_TOKEN": "x"}}, "envs: API_TOKEN: a secret; it belongs in Secrets Manager"),
        ({"slurm": {}}, "slurm: the engine aws_batch does not use it; remove it"),
        ({"source": ["a.env"]}, "the engine aws_batch does not use them"),
    ],
)
def test_a_mistake_in_the_fleet_file_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pool(**changes)


# ---------------------------------------------------------------------------------------- rights


def test_the_coordinator_may_use_batch_and_nothing_else() -> None:
    role = "arn:aws:iam::1:role/worker"
    pools = {"cpu": pool(aws_batch={"job_role": role})}
    document = fleet_policy(FleetFile(deployment="lab", pools=pools))
    assert document is not None
    statements = {tuple(each["Action"]): each for each in document["Statement"]}
    actions = {action for each in statements for action in each}
    assert {action for action in actions if not action.startswith("batch:")} == {"iam:PassRole"}
    (passed,) = (each for each in document["Statement"] if each["Action"] == ["iam:PassRole"])
    assert passed["Resource"] == [role]
    ending = statements["batch:CancelJob", "batch:TerminateJob"]
    assert ending["Condition"] == {"StringEquals": {"aws:ResourceTag/dpstream-deployment": "lab"}}
    operations = {
        *("ListJobs", "DescribeJobs", "DescribeJobDefinitions", "DescribeJobQueues"),
        *("SubmitJob", "RegisterJobDefinition", "CancelJob", "TerminateJob", "TagResource"),
    }
    assert actions - {"iam:PassRole"} == {f"batch:{each}" for each in operations}
    local = {"engine": "process", "serves": ["train"], "max": 1}
    assert (
        fleet_policy(FleetFile.model_validate({"deployment": "x", "pools": {"a": local}})) is None
    )
