"""Clocks of live processes that are set forward and back, each on its own."""

from __future__ import annotations

import time
from itertools import cycle
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import load_state, verdict
from dpstream.shared import messages as m
from dpstream.shared.files import write_whole
from tests.support.deployed_cluster import NAME, PATIENT, ROLES, WORKER_MODULE, Cluster, check, plan

CLOCK = "tests.support.jumping_clock"
DAY = 86400.0
JUMPS = (DAY, -DAY, 3600.0, 0.0, -3600.0, 30 * DAY, -30 * DAY)


@pytest.mark.soak
def test_clocks_that_are_set_forward_and_back(cluster: Cluster, tmp_path: Path) -> None:
    """No lease ends and no task waits because of it, also after the coordinator started again."""
    clocks = {name: tmp_path / name for name in ("coordinator", *ROLES)}
    for clock in clocks.values():
        write_whole(clock, "0")
    given = {"http_port": "0", "lease_seconds": PATIENT, "reissue_after": PATIENT}
    program = ("dpstream.services.coordinator",)
    cluster.keep_running("coordinator", CLOCK, str(clocks["coordinator"]), *program, **given)
    for role in ROLES:
        given = {"name": role, "task_heartbeat": "0.3", "simulated_seconds": "1"}
        cluster.keep_running(role, CLOCK, str(clocks[role]), WORKER_MODULE, role, **given)
    cluster.submit(plan())
    jumps = 0
    for name, ahead in zip(cycle(clocks), cycle(JUMPS), strict=False):
        if verdict(cluster.store, NAME):
            break
        write_whole(clocks[name], str(ahead))
        jumps += 1
        if jumps == 20:
            cluster.kill("coordinator")
        time.sleep(0.5)
        cluster.restart_dead()
    state = load_state(cluster.store, NAME)
    print(f"{jumps} jumps; {len(state.tasks)} tasks")
    assert jumps > 20
    check(cluster, state)
    assert cluster.restarts == {"coordinator": 1}
    assert not cluster.recorded(m.LeaseLapsed)
    assert {task.command.attempt for task in state.tasks.values()} == {1}
