"""A whole deployment on a real broker and a real object store, whose processes are started again
when they die, and the result that a campaign must reach whatever happens to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.services.coordinator.ledger.ledger import (
    LedgerReader,
    read_messages,
    verdict,
)
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.codec import encode, topic_of
from dpstream.shared.ports import Outgoing
from dpstream.shared.settings import Settings
from dpstream.shared.spec import Spec
from dpstream.shared.values import Ref, campaign_uri
from tests.support.campaigns.archived import whole_state
from tests.support.campaigns.campaign_simulator import RECIPE, CampaignSimulator, spec, submission
from tests.support.campaigns.lossy_delivery import LossyDelivery, check_counters
from tests.support.campaigns.small_campaign import labelled
from tests.support.deployments.deployment import Deployment, Started
from tests.support.deployments.worker_without_engines import COMPUTED, RIPE

BUCKET = "chaos"
NAME = "world"
LEASE, REISSUE, HEARTBEAT = "3", "2", "0.3"
PATIENT = "60"
"""Lease, seconds: longer than any task, however busy the machine."""
SECONDS = 150.0
"""Seconds, the limit of every wait for a campaign or an event of it."""
WORKER_MODULE = "tests.support.deployments.worker_without_engines"
ROLES = ("trainer", "explorer", "labeler")


def plan(**changes: Any) -> Spec:
    """Two rounds of two conditions; no task is given up for having lost a few workers."""
    smaller: dict[str, Any] = {
        "training": {"members": 2},
        "stages": [{"name": "cold", "systems": ["methane"], "temperatures": [50.0, 100.0]}],
        "labels": {"bundle": 2},
        "md": {"steps": 100, "every": 10, "trajectories": 1, "chunk": 5},
        "verification": {"reference_md": {"system": "methane", "trajectories": 1}},
        "max_attempts": 12,
    }
    return spec(**(smaller | changes))


@cache
def undisturbed() -> State:
    """The final state if nothing ever fails, by the policy alone: the same frames for every choice
    of bundles and attempts."""
    return LossyDelivery(CampaignSimulator(RIPE), plan()).run()


@dataclass
class Cluster(Deployment):
    plans: dict[str, tuple[tuple[str, ...], dict[str, str]]] = field(default_factory=dict)
    """How to start each service, by name."""
    services: dict[str, Started] = field(default_factory=dict)
    restarts: Counter[str] = field(default_factory=Counter)

    # ------------------------------------------------------------------------------- processes

    def keep_running(self, name: str, /, *module: str, **environment: str) -> Started:
        """A process that is started again whenever it is found dead."""
        self.plans[name] = module, environment
        self.services[name] = self.start(*module, **environment)
        return self.services[name]

    def start_coordinator(self, name: str = "coordinator", **environment: str) -> Started:
        given = {
            "http_port": "0",
            "lease_seconds": LEASE,
            "reissue_after": REISSUE,
            **environment,
        }
        return self.keep_running(name, "dpstream.services.coordinator", **given)

    def start_worker(self, role: str, name: str = "", **environment: str) -> Started:
        given = {"name": name or role, "task_heartbeat": HEARTBEAT, **environment}
        return self.keep_running(name or role, WORKER_MODULE, role, **given)

    def start_services(self, roles: Sequence[str] = ROLES, **environment: str) -> None:
        """A coordinator, unless there is one, and one worker for each role."""
        if "coordinator" not in self.plans:
            self.start_coordinator()
        for role in roles:
            self.start_worker(role, **environment)

    def stop_restarting(self, name: str) -> Started:
        """The service is no longer started again when it ends."""
        del self.plans[name]
        return self.services.pop(name)

    def kill(self, name: str) -> None:
        """SIGKILL; another is started at once."""
        self.services[name].process.kill()
        self.services[name].process.wait()
        self.restart_dead()

    def restart_dead(self) -> None:
        for name, started in list(self.services.items()):
            if started.process.poll() is not None:
                self.restarts[name] += 1
                module, environment = self.plans[name]
                self.services[name] = self.start(*module, **environment)

    # -------------------------------------------------------------------------------- campaigns

    def submit(self, of: Spec, frames: int = 6) -> m.CampaignSubmitted:
        """As `dpstream submit` does, with this many frames to label first."""
        body = of.model_dump_json().encode()
        key = campaign_uri(of.name, "spec.json")
        self.store.create(key, body)
        recipe = RECIPE.model_copy(update={"settings": {"method": "GFN2-xTB"}})
        spec_ref = Ref.to(key, body)
        event = submission(of, frames).model_copy(update={"spec": spec_ref, "recipe": recipe})
        self.store.create(campaign_uri(of.name, "submitted.json"), encode(event))
        with closing(self.bus()) as bus:
            bus.publish([Outgoing(encode(event), topic=topic_of(event))])
        return event

    def submit_file(self, spec: Path) -> None:
        """By `dpstream submit`."""
        done = subprocess.run(
            [sys.executable, "-m", "dpstream", "submit", str(spec), "--wait", "0"],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def keep_running_engines(self, roles: Sequence[str], folder: Path) -> None:
        """Real services, whose scratch folders lie in `folder`."""
        for role in roles:
            scratch = folder / role
            scratch.mkdir()
            given = {"name": role, "scratch": str(scratch), "task_heartbeat": "1"}
            self.keep_running(role, f"dpstream.services.{role}", **given)

    def until(self, met: Callable[[], Any], what: str) -> Any:
        """The first true value of `met`; dead services are started again meanwhile."""
        deadline = time.monotonic() + SECONDS
        while True:
            self.restart_dead()
            if found := met():
                return found
            assert time.monotonic() < deadline, f"{what}: timed out; {self.latest_log_lines()}"
            time.sleep(0.05)

    def finish(self) -> State:
        self.until(lambda: verdict(self.store, NAME), "the campaign's end")
        return whole_state(self.store, NAME)

    def until_state(self, met: Callable[[State], Any], what: str) -> Any:
        """The first true value of `met` for the state in the ledger."""
        reading = LedgerReader.begin(self.store, NAME)

        def look() -> Any:
            reading.update()
            return met(reading.state)

        return self.until(look, what)

    def recorded(self, *kinds: type[m.Message]) -> list[Any]:
        """All of a kind in the ledger, decisions included."""
        return [e for e in read_messages(self.store, NAME) if isinstance(e, kinds)]

    def latest_log_lines(self) -> str:
        lines = {name: (s.log_lines[-3:], s.other_lines[-5:]) for name, s in self.services.items()}
        state = whole_state(self.store, NAME)
        tasks = [t for t in state.tasks.values() if t.status in ("open", "running", "lost")]
        return f"{lines}; {[(t.command.title, t.command.attempt, t.status) for t in tasks]}"


C = TypeVar("C", bound="Cluster")


def deployed(node: RabbitNode, server: SeaweedServer, endpoint: str | None = None) -> Cluster:
    return deployed_as(Cluster, node, server, endpoint)


def deployed_as(
    kind: type[C], node: RabbitNode, server: SeaweedServer, endpoint: str | None = None
) -> C:
    """Queue names and keys that no other test sees. `endpoint`: where the processes find the
    store, if not at the server itself."""
    server.make_bucket(BUCKET)
    name = uuid.uuid4().hex
    given = {
        "broker": node.url,
        "broker_prefix": f"{name}.",
        "store": f"s3://{BUCKET}/{name}",
        "store_endpoint": server.endpoint,
        "store_access_key": server.access_key,
        "store_secret_key": server.secret_key,
        "store_addressing": "path",
    }
    seen = given | {"store_endpoint": endpoint or server.endpoint}
    environment = {f"DPSTREAM_{key.upper()}": value for key, value in seen.items()}
    return kind(Settings(**given), environment)  # type: ignore[arg-type]


def check(cluster: Cluster, state: State, without: Sequence[str] = ()) -> None:
    """The same frames are labelled as in an undisturbed campaign (except `without`), for the same
    purpose; none is counted twice, none computed again once it is stored."""
    calm = undisturbed()
    assert state.finished is not None
    assert calm.finished is not None
    assert state.finished.verdict == calm.finished.verdict == "converged"
    wanted = {key: what for key, what in labelled(calm).items() if key not in without}
    assert labelled(state) == wanted
    learned = state.dataset.size + len(state.dataset.fresh)
    assert learned == sum(what != "audit" for what in wanted.values())
    check_counters(state)
    assert computed_twice(cluster) == []
    assert not cluster.recorded(m.CampaignPaused)


def computed_twice(cluster: Cluster) -> list[str]:
    """Frames with two labels that were both accepted as new."""
    fresh = Counter(
        accepted.key
        for done in cluster.recorded(m.LabelsDone)
        for accepted in done.accepted
        if not accepted.reused
    )
    return [key for key, times in fresh.items() if times > 1]


def computations(cluster: Cluster) -> Counter[str]:
    """How often the label of each frame was computed, useless computations included."""
    return Counter(key.split("/")[1] for key in cluster.store.list(f"{COMPUTED}/"))
