"""Clocks of live processes that are set forward and back, each on its own."""

from __future__ import annotations

import time
from itertools import cycle
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import verdict
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.files import write_whole
from tests.support.campaigns.archived import tasks_of, whole_state
from tests.support.deployments.deployed_cluster import (
    NAME,
    PATIENT,
    ROLES,
    WORKER_MODULE,
    Cluster,
    check,
    plan,
)

CLOCK = "tests.support.deployments.jumping_clock"
DAY = 86400.0
JUMPS = (DAY, -DAY, 3600.0, 0.0, -3600.0, 30 * DAY, -30 * DAY)


@pytest.mark.soak
def test_clocks_that_are_set_forward_and_back(cluster: Cluster, tmp_path: Path) -> None:
    """No lease ends because of it and none lasts longer, also after the coordinator started
    again."""
    clocks = {name: tmp_path / name for name in ("coordinator", *ROLES)}
    for clock in clocks.values():
        write_whole(clock, "0")
    given = {"http_port": "0", "lease_seconds": PATIENT, "reissue_after": PATIENT}
    program = ("dpstream.services.coordinator",)
    cluster.keep_running("coordinator", CLOCK, str(clocks["coordinator"]), *program, **given)
    for role in ROLES:
        given = {"name": role, "task_heartbeat": "0.3", "simulated_seconds": "1.5"}
        cluster.keep_running(role, CLOCK, str(clocks[role]), WORKER_MODULE, role, **given)
    cluster.submit(plan())
    jumps = 0
    for name, ahead in zip(cycle(clocks), cycle(JUMPS), strict=False):
        if verdict(cluster.store, NAME):
            break
        write_whole(clocks[name], str(ahead))
        jumps += 1
        assert jumps < 600, "a lease does not end"
        if jumps == 10:
            cluster.kill("coordinator")
        elif jumps == 20:  # a restart would give the lost task a new lease
            _lose_a_worker(cluster, clocks["coordinator"])
        time.sleep(0.5)
        cluster.restart_dead()
    state = whole_state(cluster.store, NAME)
    tasks = tasks_of(state)
    print(f"{jumps} jumps; {len(tasks)} tasks")
    assert jumps > 20
    check(cluster, state)
    assert cluster.restarts == {"coordinator": 1, "labeler": 1}
    (lapsed,) = cluster.recorded(m.LeaseLapsed)
    attempts = {name: task.attempt for name, task in tasks.items()}
    assert attempts == dict.fromkeys(attempts, 1) | {lapsed.task: 2}


def _lose_a_worker(cluster: Cluster, clock: Path) -> None:
    """A worker is killed with a task in hand, and then the coordinator's clock is set far back."""
    cluster.until_state(_labelling, "a label under way")
    labeler = cluster.services["labeler"].process
    labeler.kill()
    labeler.wait()
    write_whole(clock, str(-90 * DAY))


def _labelling(state: State) -> bool:
    tasks = state.tasks.values()
    return any(t.status == "running" and isinstance(t.command, m.Label) for t in tasks)
