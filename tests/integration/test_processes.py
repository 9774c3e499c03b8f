"""Worker services as processes of their own, on a real broker and a real object store."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ase.build import molecule

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import (
    Batch,
    canonical,
    decode_labelled,
    encode_labelled,
    frame_key,
    from_ase,
)
from dpstream.shared.codec import decode, encode, queue_of
from dpstream.shared.connect import connect_bus, connect_store
from dpstream.shared.ports import Bus, Outgoing, Store, Subscription
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.settings import Settings
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.values import Dataset, FrameRef, Ref
from tests.support.adapters.dead_letters import buried_bodies
from tests.support.programs.labeling_programs import CUSTOM
from tests.support.workers.trainer import labels, spec_of

ROOT = Path(__file__).parents[2]
PROMPT = 60.0
TRAINING = 240.0
"""Seconds in which a small training reaches its first checkpoint on a busy machine."""
TBLITE: dict[str, Any] = {"code": "tblite"}
EMT: dict[str, Any] = {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}}
SPEC = Spec.model_validate(
    {
        "name": "demo",
        "type_map": ["H", "C"],
        "systems": {"methane": {"structures": ["methane.xyz"]}},
        "initial": {"perturb": {}},
        "stages": [{"name": "one", "systems": ["methane"], "temperatures": [300]}],
        "labels": {"code": "tblite"},
        "verification": {"reference_md": {"system": "methane", "equilibrate": 1e6}},
    }
)


@dataclass
class Deployment:
    """A broker and a bucket, with queue names and keys that no other test sees."""

    settings: Settings
    environment: dict[str, str]
    scratch: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bus: Bus = connect_bus(self.settings)
        self.store: Store = connect_store(self.settings)
        self.ear: Subscription = self.bus.consume("coordinator", prefetch=100)

    def start(self, service: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        given = {f"DPSTREAM_{name.upper()}": value for name, value in environment.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", f"dpstream.services.{service}", *arguments],
            env={**self.environment, **given},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.processes.append(process)
        return process

    def refused(self, service: str = "labeler", **environment: str) -> str:
        """What a process that cannot start says."""
        process = self.start(service, **environment)
        _, said = process.communicate(timeout=PROMPT)
        assert process.returncode == 2, said
        return said

    def send(self, *commands: m.Command) -> None:
        self.bus.publish([Outgoing(encode(c), queue=queue_of(c)) for c in commands])

    def hear(self, seconds: float = PROMPT) -> Any:
        """The next event of a task that is no heartbeat."""
        while True:
            delivery = self.ear.next(seconds)
            assert delivery is not None, "no event"
            delivery.ack()
            event = decode(delivery.body)
            if not isinstance(event, (m.TaskHeartbeat, m.ProcessStarted)):
                return event

    def put(self, name: str, data: bytes) -> Ref:
        ref = Ref.to(f"campaigns/demo/{name}", data)
        self.store.create(ref.uri, data)
        return ref

    def frame(self) -> FrameRef:
        frame = canonical(from_ase(molecule("CH4"))).frame
        return FrameRef(
            batch=self.put("frames.npz", Batch.of([frame]).dumps()), index=0, key=frame_key(frame)
        )

    def envelope(self, task: str) -> dict[str, Any]:
        return {
            "id": f"command-{task}",
            "campaign": "demo",
            "time": 0.0,
            "task": task,
            "title": f"test {task}",
            "max_seconds": 600.0,
        }

    def labelling(self, labels: dict[str, Any]) -> dict[str, Any]:
        spec = SPEC.model_copy(update={"labels": LabelSettings.model_validate(labels)})
        recipe = make_recipe(spec.labels).digest
        return {
            "spec": self.put(f"{recipe}.json", spec.model_dump_json().encode()),
            "capability": spec.labels.capability,
            "recipe": recipe,
        }

    def label(self, task: str) -> m.Label:
        return m.Label(**self.envelope(task), **self.labelling(TBLITE), frames=(self.frame(),))

    def bundle(self, task: str, labels: dict[str, Any]) -> m.Label:
        """Two frames of methane."""
        frames = [canonical(from_ase(molecule("CH4"))).frame]
        frames.append(replace(frames[0], positions=frames[0].positions * 1.01))
        batch = self.put("bundle.npz", Batch.of(frames).dumps())
        refs = [
            FrameRef(batch=batch, index=index, key=frame_key(frame))
            for index, frame in enumerate(frames)
        ]
        return m.Label(**self.envelope(task), **self.labelling(labels), frames=tuple(refs))

    def endless(self, task: str, labels: dict[str, Any] = TBLITE) -> m.Reference:
        """Dynamics that takes days before it keeps its first frame."""
        given = {**self.envelope(task), **self.labelling(labels)}
        return m.Reference(**given, structure=self.frame(), trajectory=0, seed=1)

    def training(self, member: int, **more: Any) -> m.Train:
        """A training on eight frames that saves a checkpoint every 100 steps and takes days."""
        model = {"descriptor": {"sel": [4, 1], "neuron": [4, 8], "axis_neuron": 4}}
        document = {"model": model, "training": {"disp_freq": 100}}
        training = {"checkpoint_steps": 100, "compress": False, "input": document}
        spec = spec_of(mode="streaming", **training)
        refs = [
            self.put(f"labels/{number}.json", encode_labelled(*pair, {}))
            for number, pair in enumerate(labels(8, 1))
        ]
        dataset = Dataset(version=1, labels=tuple(refs)).model_dump_json().encode()
        given = {
            "spec": self.put("training.json", spec.model_dump_json().encode()),
            "version": 1,
            "member": member,
            "seed": member,
            "dataset": self.put("dataset.json", dataset),
            "steps": 10**6,
        }
        return m.Train(**self.envelope(f"train-{member}") | given | more)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            if process.stderr is not None and not process.stderr.closed:
                process.communicate()
        self.bus.close()


@pytest.fixture
def deployment(
    rabbit_node: RabbitNode, seaweed: SeaweedServer, tmp_path: Path
) -> Iterator[Deployment]:
    seaweed.make_bucket("processes")
    name = uuid.uuid4().hex
    given = {
        "broker": rabbit_node.url,
        "broker_prefix": f"{name}.",
        "store": f"s3://processes/{name}",
        "store_endpoint": seaweed.endpoint,
        "store_access_key": seaweed.access_key,
        "store_secret_key": seaweed.secret_key,
        "store_addressing": "path",
        "scratch": str(tmp_path / "scratch"),
    }
    environment = {f"DPSTREAM_{key.upper()}": value for key, value in given.items()}
    deployment = Deployment(Settings(**given), environment, tmp_path / "scratch")  # type: ignore[arg-type]
    yield deployment
    deployment.close()


@pytest.fixture
def port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def ask(port: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=15) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PROMPT
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_ready(port: str, process: subprocess.Popen[str]) -> None:
    def ready() -> bool:
        with suppress(urllib.error.URLError):
            return ask(port, "/readyz") == (200, "ok\n")
        return False

    until(ready, process)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and log lines."""
    _, said = process.communicate(timeout=PROMPT)
    return process.returncode, [json.loads(line) for line in said.splitlines()]


def test_a_labeler_labels_is_watched_and_goes(deployment: Deployment, port: str) -> None:
    process = deployment.start(
        "labeler", "--name", "lab", http_port=port, labeler_codes="tblite", http_prot="80"
    )
    wait_until_ready(port, process)
    newer = b'{"type": "label/2", "campaign": "demo"}'
    deployment.bus.publish([Outgoing(newer, queue="label.tblite")])
    deployment.send(deployment.label("t1"))
    claimed, done = deployment.hear(), deployment.hear()
    assert isinstance(claimed, m.TaskClaimed)
    assert (claimed.task, claimed.worker) == ("t1", "lab")
    assert decode(deployment.store.get(claim_uri("demo", "t1", 1))) == claimed
    assert isinstance(done, m.LabelsDone), done
    _, label, provenance = decode_labelled(deployment.store.get(done.accepted[0].label.uri))
    assert label.energy == pytest.approx(-113.7, abs=0.5)
    assert provenance["worker"] == "lab"
    assert buried_bodies(deployment.store) == [newer]
    metrics = ask(port, "/metrics")[1]
    assert 'dpstream_worker_tasks_total{kind="label",outcome="done"} 1.0' in metrics
    assert "dpstream_worker_deadletters_total 1.0" in metrics
    assert ask(port, "/healthz") == (200, "ok\n")
    process.send_signal(signal.SIGTERM)
    status, lines = ended(process)
    assert status == 0
    about = ("labeler", "lab", "demo", "t1", 1)
    keys = ("service", "worker", "campaign", "task", "attempt")
    (end,) = [line for line in lines if line["event"] == "task ended"]
    assert tuple(end[key] for key in keys) == about
    assert list(deployment.scratch.glob("dpstream-*")) == []
    unknown = [line for line in lines if line["event"] == "unknown variable ignored"]
    assert [(line["variable"], line["did_you_mean"]) for line in unknown] == [
        ("DPSTREAM_HTTP_PROT", "DPSTREAM_HTTP_PORT")
    ]
    said = json.dumps(lines)
    for name in ("DPSTREAM_STORE_SECRET_KEY", "DPSTREAM_BROKER"):
        assert deployment.environment[name] not in said
    assert urlsplit(deployment.environment["DPSTREAM_BROKER"]).password not in said


@pytest.mark.soak
def test_the_first_label_of_a_bundle_is_known_before_its_worker_is_lost(
    deployment: Deployment, tmp_path: Path
) -> None:
    """The second run of the program does not end."""
    script = tmp_path / "program.sh"
    script.write_text(
        f"if ! mkdir {tmp_path}/first && mkdir {tmp_path}/second; then exec sleep 60; fi\n"
        f"exec {sys.executable} {ROOT}/tests/support/programs/tblite_program.py 0 1\n"
    )
    programs = {
        "labeler_codes": "custom",
        "labeler_commands": f"xtb-script=sh {script}",
        "confine_read": str(ROOT / "tests"),
        "confine_write": str(tmp_path),
    }
    command = deployment.bundle("t1", CUSTOM)
    first, second = command.frames
    killed = deployment.start("labeler", **programs)
    deployment.send(command)
    claimed, done = deployment.hear(), deployment.hear()
    assert isinstance(claimed, m.TaskClaimed)
    assert isinstance(done, m.LabelsDone), done
    assert (done.chunk, done.last) == (0, False)
    assert [accepted.key for accepted in done.accepted] == [first.key]
    assert deployment.store.exists(done.accepted[0].label.uri)
    until((tmp_path / "second").exists, killed)
    killed.kill()
    killed.wait()
    deployment.start("labeler", **programs)
    deployment.send(command.model_copy(update={"attempt": 2, "frames": (second,)}))
    assert isinstance(deployment.hear(), m.TaskClaimed)
    done = deployment.hear()
    assert isinstance(done, m.LabelsDone), done
    assert (done.chunk, done.last) == (0, True)
    assert [accepted.key for accepted in done.accepted] == [second.key]


def test_a_labeler_leaves_what_it_cannot_serve_to_another(deployment: Deployment) -> None:
    """No attempt is used up, and the worker goes on."""
    wrong = deployment.start(
        "labeler", "--name", "wrong", labeler_codes="ase", labeler_calculators="ase.toy.Toy"
    )
    command = deployment.bundle("t1", EMT)
    deployment.send(command)
    declined = deployment.hear()
    assert isinstance(declined, m.TaskDeclined), declined
    assert (declined.worker, declined.task, declined.attempt) == ("wrong", "t1", 1)
    calculator = EMT["settings"]["calculator"]
    assert declined.reason == f"{calculator} is not in this worker's DPSTREAM_LABELER_CALCULATORS"
    assert deployment.bus.depth("label.ase") == 0
    deployment.start("labeler", "--name", "right", labeler_codes="ase")
    deployment.send(command)
    while isinstance(event := deployment.hear(), m.TaskDeclined):  # its rest ended first
        deployment.send(command)
    assert isinstance(event, m.TaskClaimed), event
    assert event.worker == "right"
    assert isinstance(deployment.hear(), m.LabelsDone)
    assert wrong.poll() is None


def test_a_labeler_that_can_run_none_of_its_codes_ends_with_status_2(
    deployment: Deployment,
) -> None:
    process = deployment.start("labeler", labeler_codes="vasp")
    assert process.wait(PROMPT) == 2


def test_sigterm_gives_the_tasks_of_all_slots_back(deployment: Deployment) -> None:
    """Three of four tasks are computed at once, each under the name of its slot."""
    tasks = {"t1", "t2", "t3", "t4"}
    process = deployment.start("labeler", "--name", "lab", labeler_codes="ase", labeler_slots="3")
    deployment.send(*(deployment.endless(task, EMT) for task in sorted(tasks)))
    claims = [deployment.hear() for _ in range(3)]
    assert {type(claim) for claim in claims} == {m.TaskClaimed}
    assert {claim.worker for claim in claims} == {"lab.0", "lab.1", "lab.2"}
    claimed = {claim.task for claim in claims}
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    released = [deployment.hear() for _ in range(3)]
    assert {type(event) for event in released} == {m.TaskReleased}
    assert {(each.task, each.reason) for each in released} == {
        (task, "the worker is stopping") for task in claimed
    }
    status, lines = ended(process)
    assert (status, time.monotonic() - asked < 15) == (75, True)
    outcomes = [line["outcome"] for line in lines if line["event"] == "task ended"]
    assert outcomes == ["preempted"] * 3
    assert deployment.bus.depth("label.ase") == len(tasks - claimed) == 1


@pytest.mark.soak
def test_two_members_are_trained_at_once_stopped_and_resumed(
    deployment: Deployment, port: str
) -> None:
    process = deployment.start("trainer", "--name", "gpu", http_port=port, trainer_slots="2")
    wait_until_ready(port, process)
    deployment.send(deployment.training(0), deployment.training(1))
    claims = [deployment.hear(TRAINING) for _ in range(2)]
    assert {(type(each), each.task) for each in claims} == {
        (m.TaskClaimed, "train-0"),
        (m.TaskClaimed, "train-1"),
    }
    assert {claim.worker for claim in claims} == {"gpu.0", "gpu.1"}
    saved: dict[str, m.CheckpointSaved] = {}
    while len(saved) < 2:
        event = deployment.hear(TRAINING)
        assert isinstance(event, m.CheckpointSaved), event
        saved[event.task] = event
    metrics = ask(port, "/metrics")[1]
    assert "dpstream_worker_busy 2.0" in metrics
    assert "dpstream_worker_slots 2.0" in metrics
    process.send_signal(signal.SIGTERM)
    released: set[str] = set()
    while len(released) < 2:
        event = deployment.hear(TRAINING)
        if isinstance(event, m.CheckpointSaved):
            saved[event.task] = event
        else:
            assert isinstance(event, m.TaskReleased), event
            released.add(event.task)
    assert ended(process)[0] == 75

    following = deployment.start("trainer", "--max-tasks", "2", trainer_slots="2")
    for member in (0, 1):
        last = saved[f"train-{member}"]
        resumed = {"attempt": 2, "resume": last.checkpoint, "steps": last.step + 100}
        deployment.send(deployment.training(member, **resumed))
    trained: dict[str, m.MemberTrained] = {}
    while len(trained) < 2:
        event = deployment.hear(TRAINING)
        assert isinstance(event, (m.TaskClaimed, m.MemberTrained)), event
        if isinstance(event, m.MemberTrained):
            trained[event.task] = event
    assert ended(following)[0] == 0
    for task, member_trained in trained.items():
        curve = deployment.store.get(member_trained.lcurve.uri).decode().splitlines()
        steps = [int(line.split()[0]) for line in curve if not line.startswith("#")]
        assert steps == sorted(steps)
        assert steps[0] < saved[task].step <= steps[-1]
    models = {deployment.store.get(each.model.uri) for each in trained.values()}
    assert len(models) == 2


def test_a_job_style_worker_ends_by_itself(deployment: Deployment) -> None:
    deployment.send(deployment.label("t1"), deployment.label("t2"))
    one = deployment.start("labeler", "--max-tasks", "1", labeler_codes="tblite")
    assert ended(one)[0] == 0
    assert isinstance(deployment.hear(TRAINING), m.TaskClaimed)
    assert deployment.hear(TRAINING).task == "t1"
    assert deployment.bus.depth("label.tblite") == 1
    rest = deployment.start("labeler", "--idle-exit", "1", labeler_codes="pyscf,tblite")
    assert ended(rest)[0] == 0
    done = (deployment.hear(TRAINING), deployment.hear(TRAINING))[1]
    assert done.task == "t2"
    assert done.accepted[0].reused, "the same frame: nothing is computed twice"


@pytest.mark.parametrize(
    ("service", "queues"), [("trainer", ["train"]), ("explorer", ["explore", "judge", "screen"])]
)
def test_the_other_services_come_up_and_go(
    deployment: Deployment, port: str, service: str, queues: list[str]
) -> None:
    process = deployment.start(service, http_port=port)
    wait_until_ready(port, process)
    process.send_signal(signal.SIGINT)
    status, lines = ended(process)
    assert status == 0
    ready = [(line["queues"], line["slots"]) for line in lines if line["event"] == "ready"]
    assert ready == [(queues, len(queues))]


def test_wrong_settings_are_one_line(deployment: Deployment) -> None:
    assert deployment.refused(store="ftp://x") == (
        "labeler: DPSTREAM_STORE: 'ftp://x': must be s3://bucket/prefix or the path of a folder\n"
    )


def test_wrong_credentials_are_one_line_and_no_reason_to_wait(deployment: Deployment) -> None:
    url = urlsplit(deployment.environment["DPSTREAM_BROKER"])
    wrong = f"amqp://{url.username}:hunter2@{url.hostname}:{url.port}"
    for setting in ({"broker": wrong}, {"store_secret_key": "hunter2"}):
        said = deployment.refused(log_level="error", **setting)
        assert said.startswith("labeler: ")
        assert said.count("\n") == 1
        assert "hunter2" not in said


def test_a_broker_that_is_not_up_is_waited_for(deployment: Deployment, port: str) -> None:
    process = deployment.start("labeler", broker=f"amqp://u:hunter2@127.0.0.1:{port}")
    assert process.stderr is not None
    line = json.loads(process.stderr.readline())
    assert (line["event"], line["level"]) == ("broker or store failed, trying again", "warning")
    process.send_signal(signal.SIGTERM)
    status, lines = ended(process)
    assert status == 0
    assert "hunter2" not in json.dumps([line, *lines])


def test_what_a_killed_process_left_is_swept_by_the_next(deployment: Deployment) -> None:
    killed = deployment.start("labeler", labeler_codes="tblite")
    deployment.send(deployment.endless("t1"))
    assert isinstance(deployment.hear(), m.TaskClaimed)
    (left,) = deployment.scratch.glob("dpstream-*")
    killed.kill()
    killed.wait()
    following = deployment.start("labeler", "--idle-exit", "0.5", labeler_codes="tblite")
    assert ended(following)[0] == 0
    assert not left.exists()
