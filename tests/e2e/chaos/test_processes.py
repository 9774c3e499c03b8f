"""Processes that are killed, paused, overtaken or doomed."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.report.page import render
from dpstream.services.coordinator.ledger.ledger import verdict
from dpstream.services.coordinator.state import State, Task
from dpstream.shared import messages as m
from dpstream.shared.codec import decode, encode
from dpstream.shared.errors import BusError
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.values import Committee
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.campaign_simulator import submission
from tests.support.campaigns.small_campaign import labelled
from tests.support.deployments.deployed_cluster import (
    NAME,
    ROLES,
    Cluster,
    check,
    computations,
    plan,
    undisturbed,
)
from tests.support.deployments.deployment import Started
from tests.support.soak import SOAK

KILLS = 30 if SOAK else 4


@pytest.mark.soak
def test_in_peace_a_campaign_is_what_the_policy_alone_makes_of_it(cluster: Cluster) -> None:
    cluster.start_services()
    cluster.submit(plan())
    check(cluster, cluster.finish())
    assert len(computations(cluster)) == len(labelled(undisturbed()))
    assert computations(cluster).most_common(1)[0][1] == 1


def test_every_service_is_killed_at_random(cluster: Cluster) -> None:
    print(f"{KILLS} kills")
    chance = random.Random(1)
    cluster.start_services(
        simulated_seconds=str(0.5 * KILLS / 4)
    )  # the last kill falls into the campaign
    cluster.submit(plan())
    victims = [*("coordinator", *ROLES) * (KILLS // 4), *ROLES[: KILLS % 4]]
    chance.shuffle(victims)
    for victim in victims:
        cluster.services[victim].wait_for("ready")
        time.sleep(chance.uniform(0.0, 1.5))
        cluster.kill(victim)
    assert verdict(cluster.store, NAME) is None
    state = cluster.finish()
    assert sum(cluster.restarts.values()) == KILLS
    check(cluster, state)


MANY_KILLS, RECONNECTS, PAUSES = 200, 50, 20


@pytest.mark.soak
@pytest.mark.timeout(5400)
def test_two_hundred_kills_fifty_reconnects_and_pauses_over_a_whole_campaign(
    cluster: Cluster, rabbit_node: RabbitNode
) -> None:
    """In random order, until the campaign's end; then nothing of the services is left."""
    chance = random.Random(7)
    cluster.start_services(simulated_seconds=str(0.1 * MANY_KILLS))
    cluster.submit(plan(max_attempts=100))
    blows = ["kill"] * MANY_KILLS + ["reconnect"] * RECONNECTS + ["pause"] * PAUSES
    chance.shuffle(blows)
    for blow in blows:
        victim = chance.choice(["coordinator", *ROLES])
        cluster.services[victim].wait_for("ready")
        time.sleep(chance.uniform(0.0, 1.5))
        if blow == "kill":
            cluster.kill(victim)
        elif blow == "pause":
            _pause(cluster.services[victim], seconds=chance.uniform(0.5, 6.0))
        else:
            _close_connections(rabbit_node)
        cluster.restart_dead()
    assert verdict(cluster.store, NAME) is None
    for role in ROLES:  # the rest of the campaign does not take long
        cluster.plans[role][1]["simulated_seconds"] = "0"
        cluster.kill(role)
    state = cluster.finish()
    print(f"{sum(cluster.restarts.values())} restarts; {len(labelled(state))} labels")
    assert sum(cluster.restarts.values()) >= MANY_KILLS
    check(cluster, state)
    for name in list(cluster.services):
        cluster.stop_restarting(name).process.kill()
    own = set(cluster.environment.items())
    assert [p for p in psutil.process_iter() if own <= set(_environment(p).items())] == []


def _pause(started: Started, seconds: float) -> None:
    """SIGSTOP and, longer than some leases later, SIGCONT."""
    started.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    started.process.send_signal(signal.SIGCONT)


def _close_connections(node: RabbitNode) -> None:
    for connection in node.manage("GET", "/api/connections"):
        with suppress(OSError, BusError):  # closed meanwhile
            node.manage("DELETE", f"/api/connections/{quote(connection['name'], safe='')}")


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


# --------------------------------------------------------------------------------------- overtaken


@pytest.mark.soak
def test_of_two_coordinators_the_stale_one_is_fenced_off_and_says_so(
    cluster: Cluster, tmp_path: Path
) -> None:
    gate = tmp_path / "trained"  # nothing ends before both coordinators were at work
    cluster.start_services(["labeler", "explorer"])
    cluster.start_worker("trainer", simulated_gate=str(gate))
    cluster.submit(plan())
    cluster.until_state(lambda state: labelled(state), "a label")
    stale = cluster.stop_restarting("coordinator")
    cluster.start_coordinator("newer")
    cluster.until(lambda: stale.process.poll() is not None, "the end of the stale coordinator")
    assert stale.ended() == 3
    last = f"coordinator: stopped: {NAME}: taken over by a newer coordinator; run only one "
    assert stale.other_lines[-1].startswith(last)
    gate.touch()
    check(cluster, cluster.finish())
    assert not cluster.restarts


# ------------------------------------------------------------------------------------------ paused


@pytest.mark.soak
def test_workers_that_wake_too_late_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_services(["explorer"])
    for role in ("labeler", "trainer"):
        cluster.start_worker(role, f"sleeping-{role}", simulated_gate=str(tmp_path / role))
    cluster.submit(plan())
    late = [
        _oversleep(cluster, "labeler", m.Label, tmp_path),
        _oversleep(cluster, "trainer", m.Train, tmp_path),
    ]
    state = cluster.finish()
    check(cluster, state)
    assert [tasks_of(state)[name].attempt for name in late] == [2, 2]
    lapsed = {event.task for event in cluster.recorded(m.LeaseLapsed)}
    assert lapsed >= set(late)
    folder = f"campaigns/{NAME}/results/{late[1]}"
    first = cluster.recorded(m.ModelsReady)[0]
    models = Committee.model_validate_json(cluster.store.get(first.manifest.uri)).models
    assert f"{folder}/2/model.pb" in [ref.uri for ref in models]
    assert cluster.store.exists(f"{folder}/1/model.pb")


def _oversleep(cluster: Cluster, role: str, kind: type[m.Command], folder: Path) -> str:
    """A worker begins a task, is paused until another has finished it, and then goes on."""
    sleeper = cluster.services[f"sleeping-{role}"]
    found = cluster.until_state(lambda state: _running(state, kind), "the sleeper's task")
    sleeper.process.send_signal(signal.SIGSTOP)
    cluster.start_worker(role)
    name = str(found.command.task)
    cluster.until_state(lambda state: tasks_of(state)[name].status == "done", "another's result")
    results = list(cluster.store.list(f"campaigns/{NAME}/results/{name}/"))
    before = {uri: cluster.store.get(uri) for uri in results}
    (folder / role).touch()
    sleeper.process.send_signal(signal.SIGCONT)
    cluster.until(lambda: sleeper.logged("task ended"), "the sleeper's own result")
    assert {uri: cluster.store.get(uri) for uri in before} == before
    cluster.stop_restarting(f"sleeping-{role}").process.kill()
    return name


def _running(state: State, kind: type[m.Command]) -> Task | None:
    tasks = [t for t in state.tasks.values() if isinstance(t.command, kind)]
    return next((task for task in tasks if task.status == "running"), None)


# ------------------------------------------------------------------------------------------ doomed


def test_a_task_that_kills_its_workers_is_abandoned_and_the_rest_goes_on(
    cluster: Cluster,
) -> None:
    key = submission(plan()).frames[3].key
    cluster.start_services(["trainer", "explorer"])
    cluster.start_worker("labeler", simulated_fatal=key)
    cluster.submit(plan(labels={"bundle": 1}, max_attempts=2))
    state = cluster.finish()
    check(cluster, state, without=[key])
    (abandoned,) = cluster.recorded(m.TaskAbandoned)
    report = render(cluster.store, NAME)
    assert abandoned.title in report
    assert abandoned.why in report
    (task,) = [t for t in state.tasks.values() if t.status == "abandoned"]
    assert isinstance(task.command, m.Label)
    assert [frame.key for frame in task.command.frames] == [key]
    assert abandoned.why == "after 2 attempts: the worker was lost"
    assert cluster.restarts == {"labeler": 2}


@pytest.mark.soak
def test_a_claim_whose_worker_died_before_saying_so(cluster: Cluster) -> None:
    cluster.start_services(["trainer", "explorer"])
    cluster.submit(plan())
    task = cluster.until_state(_open_label, "a label to be claimed").command
    dead = m.TaskClaimed(
        id="dead", campaign=NAME, time=1.0, task=task.task, attempt=1, worker="dead"
    )
    assert cluster.store.create(claim_uri(NAME, task.task, 1), encode(dead))
    cluster.start_worker("labeler")
    state = cluster.finish()
    check(cluster, state)
    assert tasks_of(state)[task.task].attempt == 2
    assert dead in cluster.recorded(m.TaskClaimed)
    assert decode(cluster.store.get(claim_uri(NAME, task.task, 1))) == dead


def _open_label(state: State) -> Any:
    labels = [t for t in state.tasks.values() if isinstance(t.command, m.Label)]
    return next((task for task in labels if task.status == "open"), None)
