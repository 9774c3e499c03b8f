"""The coordinator as a process and the commands that speak to it, on a real broker and a real
object store."""

from __future__ import annotations

import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.services.coordinator.ledger.ledger import load_state, verdict
from dpstream.shared import messages as m
from dpstream.shared.codec import encode, topic_of
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.settings import Settings
from tests.support.campaigns.archived import tasks_of, whole_state
from tests.support.campaigns.campaign_simulator import CampaignSimulator
from tests.support.command_line import run_command
from tests.support.deployments.deployment import Deployment, wait_until

METHANE = "5\n\nC 0 0 0\nH .63 .63 .63\nH -.63 -.63 .63\nH -.63 .63 -.63\nH .63 -.63 -.63\n"
SPEC = {
    "name": "small",
    "mode": "lockstep",
    "type_map": ["C", "H"],
    "systems": {"methane": {"structures": ["methane.xyz"]}},
    "initial": {"perturb": {"copies": 6}},
    "training": {"members": 2},
    "md": {"steps": 100, "every": 10, "trajectories": 2, "chunk": 5},
    "trust": {"low": 0.1, "high": 0.3},
    "stages": [{"name": "cold", "systems": ["methane"], "temperatures": [50]}],
    "selection": {"per_round": 4},
    "labels": {"bundle": 3},
    "audit": {"per_round": 3, "min_frames": 4, "min_trajectories": 2},
    "convergence": {"rounds": 1},
}
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def deployment(
    rabbit_node: RabbitNode, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    seaweed.make_bucket("remote")
    name = uuid.uuid4().hex
    given = {
        "broker": rabbit_node.url,
        "broker_prefix": f"{name}.",
        "store": f"s3://remote/{name}",
        "store_endpoint": seaweed.endpoint,
        "store_access_key": seaweed.access_key,
        "store_secret_key": seaweed.secret_key,
        "store_addressing": "path",
    }
    environment = {f"DPSTREAM_{key.upper()}": value for key, value in given.items()}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    deployment = Deployment(Settings(**given), environment)  # type: ignore[arg-type]
    yield deployment
    deployment.close()


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command line, as typed where the store and the broker are in the environment: exit
    status and what was said, errors included."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "methane.xyz").write_text(METHANE)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SPEC))

    def called(*words: str) -> tuple[int, str]:
        status, out, err = run_command(monkeypatch, capsys, *words)
        return status, out + err

    return called


def test_a_campaign_from_submission_to_verdict(deployment: Deployment, call: Call) -> None:
    status, said = call("submit", "small.yaml", "--wait", "0")
    assert status == 0
    assert said.startswith("campaign small: ")
    assert "labels at most" in said
    assert said.endswith(
        "\nsmall: no coordinator answered within 0 s; the request takes effect when one runs "
        "(python -m dpstream.services.coordinator)\n"
    )
    started, api = deployment.api()
    with deployment.prompt_worker(), api:
        status, said = call("watch")
        assert (status, said.splitlines()[-2][:16]) == (0, "small: converged")
        assert "committee 1" in said
        (one,) = api.get("/campaigns").json()["campaigns"]
        assert (one["name"], one["verdict"]) == ("small", "converged")
        assert 'dpstream_labels{campaign="small",status="labelled"}' in api.get("/metrics").text
        assert api.get("/readyz").status_code == 200
    assert call("submit", "small.yaml")[1].startswith("small: converged")
    assert "small     converged: " in call("list")[1]
    assert "converged: all stages converged" in call("status")[1]
    assert call("watch", "small")[0] == 0
    logs = call("logs")[1]
    assert "models-ready" in logs
    assert "campaign-finished" in logs
    assert verdict(deployment.store, "small") is not None
    started.process.send_signal(signal.SIGTERM)
    assert started.ended() == 0
    assert started.logged("stopped")
    assert deployment.settings.broker.get_secret_value() not in str(started.log_lines)


def test_an_amendment_while_it_runs_and_after_its_end(deployment: Deployment, call: Call) -> None:
    hot = {"name": "hot", "systems": ["methane"], "temperatures": [300]}
    longer = {**SPEC, "stages": [*SPEC["stages"], hot]}  # type: ignore[misc]
    Path("longer.yaml").write_text(yaml.safe_dump(longer))
    Path("richer.yaml").write_text(yaml.safe_dump({**longer, "trust": {"low": 0.09, "high": 0.3}}))
    Path("other.yaml").write_text(yaml.safe_dump({**longer, "seed": 3}))
    deployment.coordinator()
    call("submit", "small.yaml")
    status, said = call("amend", "small", "longer.yaml", "--yes")
    assert status == 0, said
    assert said.splitlines()[1] == "  stage `hot` added after `cold`: methane at 300 K"
    assert said.splitlines()[-1].startswith("small: plan 2 is in force; stage cold (1 of 2)")
    with deployment.prompt_worker():
        assert call("watch")[0] == 0
        status, said = call("amend", "small", "richer.yaml", "--yes")
        assert status == 0, said
        assert "the campaign, which ended converged, goes on" in said
        assert call("watch")[0] == 0
    last = verdict(deployment.store, "small")
    assert last is not None
    assert last.plan == 3
    user = urlsplit(deployment.settings.broker.get_secret_value()).username
    state = load_state(deployment.store, "small")
    assert {record.author for record in state.plan.records} == {user}
    status, said = call("amend", "small", "other.yaml", "--yes")
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("dpstream: small: refused: seed: 1 → 3: cannot change in a campaign")


def test_pause_resume_and_cancel(deployment: Deployment, call: Call) -> None:
    deployment.coordinator()
    assert "\nsmall: stage cold (1 of 1)" in call("submit", "small.yaml")[1]
    assert call("pause", "small", "--why", "the power goes") == (
        0,
        "small: paused: the power goes\n"
        "next: dpstream resume small, or dpstream run SPEC if nothing runs it\n",
    )
    assert "paused: the power goes" in call("status")[1]
    assert call("watch")[0] == 1
    assert call("resume", "small")[1].startswith("small: stage cold")
    assert call("cancel", "small", "--why", "the wrong system") == (
        0,
        "small: cancelled: the wrong system\n"
        "next: dpstream new NAME --from small begins a campaign with its labels\n",
    )
    state = load_state(deployment.store, "small")
    assert {task.status for task in state.tasks.values()} <= {"cancelled", "open"}
    for words in (("pause", "small", "--why", "x"), ("resume", "small"), ("cancel", "small")):
        status, said = call(*words)
        assert (status, said) == (
            2,
            "dpstream: small: the campaign has already ended (cancelled: the wrong system); "
            "dpstream new NAME --from small begins a campaign with its labels\n",
        )


@pytest.mark.soak
def test_abandoned_tasks_are_tried_again_by_name(deployment: Deployment, call: Call) -> None:
    deployment.coordinator()
    with deployment.prompt_worker(fails=m.Label):
        call("submit", "small.yaml")
        wait_until(lambda: load_state(deployment.store, "small").paused, "it pauses")
    _, said = call("logs")
    assert "task-failed" in said
    assert "        there" in said
    paused = "small     paused: no initial label was accepted; label "
    assert paused in call("list")[1]
    assert call("resume", "small")[0] == 0
    with deployment.prompt_worker():
        wait_until(lambda: load_state(deployment.store, "small").committee.version, "it goes on")
    call("cancel", "small", "--why", "enough")
    assert call("retry", "small") == (
        2,
        "dpstream: small: the campaign has already ended (cancelled: enough); "
        "dpstream new NAME --from small begins a campaign with its labels\n",
    )
    call("submit", "small.yaml", "--name", "again")
    with deployment.prompt_worker(fails=m.Train):
        assert call("watch", "again")[0] == 1
    assert "again     paused: train" in call("list")[1]
    state = load_state(deployment.store, "again")
    lost = [task for task, known in state.tasks.items() if known.status == "abandoned"]
    assert call("retry", "again", "nothing")[1].startswith("dpstream: TASK: 'nothing': no such")
    status, said = call("retry", "again", *(task[:13] for task in lost))
    assert (status, said.count("\nretry requested: ")) == (0, len(lost))
    one = call("logs", "again", "--task", lost[0])[1]
    assert len(one.splitlines()) < len(call("logs", "again")[1].splitlines())
    with deployment.prompt_worker():
        assert call("resume", "again")[0] == 0
        assert call("watch", "again")[0] == 0


@pytest.mark.soak
def test_the_older_of_two_coordinators_stops_and_says_so(
    deployment: Deployment, call: Call
) -> None:
    older = deployment.coordinator()
    call("submit", "small.yaml")
    newer = deployment.coordinator()
    with deployment.prompt_worker():
        assert older.ended() == 3
        (line,) = older.other_lines
        assert line.startswith(
            "coordinator: stopped: small: taken over by a newer coordinator; run only one "
        )
        assert call("watch")[0] == 0
    assert newer.process.poll() is None


def _has_committee(deployment: Deployment, version: int) -> bool:
    return load_state(deployment.store, "small").committee.version >= version


@pytest.mark.soak
def test_killed_at_any_moment_another_goes_on(deployment: Deployment, call: Call) -> None:
    call("submit", "small.yaml", "--wait", "0")
    with deployment.prompt_worker():
        for version in (0, 1, 2):
            started = deployment.coordinator()
            wait_until(partial(_has_committee, deployment, version), f"committee {version}")
            started.process.kill()
            started.ended()
        deployment.coordinator()
        assert call("watch")[0] == 0
    state = load_state(deployment.store, "small")
    assert state.finished is not None
    assert state.finished.verdict == "converged"


@pytest.mark.soak
def test_dead_letters_are_failures_and_strangers_are_kept(
    deployment: Deployment, call: Call
) -> None:
    _, api = deployment.api()
    call("submit", "small.yaml")
    command = next(iter(load_state(deployment.store, "small").tasks.values())).command
    deployment.dead_letter(command)
    wait_until(
        lambda: tasks_of(whole_state(deployment.store, "small"))[command.task].lapses == 1,
        "a failure",
    )
    with closing(deployment.bus()) as bus:
        alien = encode(m.CampaignResumed(id="x", campaign="small", time=0.0))
        bus.publish([Outgoing(alien.replace(b"resumed/1", b"resumed/9"), topic="small.resumed")])
    with api:
        wait_until(lambda: api.get("/campaigns").json()["undecodable"] == 1, "a stranger")
        assert api.get("/campaigns").json()["given_up"] == 1
    line = "1 messages could not be decoded; they are kept in the store under deadletters/"
    assert line in call("status")[1]


def test_heartbeats_are_seen_where_there_is_a_broker(deployment: Deployment, call: Call) -> None:
    _, api = deployment.api()
    call("submit", "small.yaml")
    command = next(iter(load_state(deployment.store, "small").tasks.values())).command
    claimed = CampaignSimulator().answer(command)[0]
    key = claim_uri("small", command.task, command.attempt)
    assert deployment.store.create(key, encode(claimed))
    beat = m.TaskHeartbeat(
        **CampaignSimulator.envelope(command, "beat"), worker="w7", progress="cycle 12"
    )
    with closing(deployment.bus()) as bus, api:
        bus.publish([Outgoing(encode(e), topic=topic_of(e)) for e in (claimed, beat)])

        def running() -> list[dict[str, str]]:
            told: list[dict[str, str]] = api.get("/campaigns/small/tasks?status=running").json()
            return [task for task in told if task["progress"]]

        wait_until(running, "a running task")
        assert running()[0] | {"worker": "w7", "progress": "cycle 12"} == running()[0]


def test_the_api_beyond_this_machine_asks_for_its_token(deployment: Deployment) -> None:
    token = uuid.uuid4().hex
    started, api = deployment.api(http_host="0.0.0.0", api_token=token)
    with api:
        assert api.get("/campaigns").status_code == 401
        assert api.get("/healthz").status_code == 200
        allowed = api.get("/campaigns", headers={"Authorization": f"Bearer {token}"})
        assert allowed.json()["campaigns"] == []
    assert token not in str(started.log_lines)


def test_run_works_along_with_a_deployment(deployment: Deployment, call: Call) -> None:
    none = "trainer=0,explorer=0,labeler=0"
    with deployment.prompt_worker():
        status, said = call("run", "small.yaml", "--workers", f"{none},coordinator=1")
    assert (status, said.splitlines()[-2][:16]) == (0, "small: converged")


def test_a_service_that_cannot_start_ends_the_run(
    deployment: Deployment, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPSTREAM_LEASE_SECONDS", "soon")
    none = "trainer=0,explorer=0,labeler=0"
    status, said = call("run", "small.yaml", "--workers", f"{none},coordinator=1")
    assert status == 2
    assert (
        "coordinator-0 ended with exit status 2: coordinator: DPSTREAM_LEASE_SECONDS: 'soon'"
        in said
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("resume", "none"),
            "--store: {store}: contains no campaign; start one with dpstream run SPEC",
        ),
        (("list", "--store", "ftp://x"), "--store: 'ftp://x': must be s3://bucket/prefix"),
        (("submit", "small.yaml", "--broker", "http://x"), "DPSTREAM_BROKER: must be amqp(s)://"),
        (("run", "small.yaml", "--workers", "trainer=-1"), "--workers: 'trainer=-1': must be"),
    ],
)
def test_bad_input_is_one_line(
    deployment: Deployment, call: Call, words: tuple[str, ...], line: str
) -> None:
    status, said = call(*words)
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("dpstream: " + line.format(store=deployment.settings.store)), said


def test_a_wrong_password_is_one_line_without_it(
    deployment: Deployment, call: Call, rabbit_node: RabbitNode
) -> None:
    url = httpx.URL(rabbit_node.url).copy_with(password="s3same")
    status, said = call("submit", "small.yaml", "--broker", str(url))
    assert (status, said.count("\n")) == (2, 1)
    assert "s3same" not in said
    assert not list(deployment.store.list("campaigns/"))
