"""Many campaigns, one after the other, with the same processes: more tasks than an hour brings."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from dpstream.services.coordinator.ledger.ledger import verdict
from tests.support.campaigns.archived import whole_state
from tests.support.campaigns.small_campaign import labelled
from tests.support.deployments.deployed_cluster import PATIENT, ROLES, Cluster, computations, plan

CAMPAIGNS, WARM = 20, 3
SPARE = 5
"""Descriptors more than after the first campaigns: connections to the store are kept for reuse."""
GROWTH = 60e6
"""Bytes; the coordinator keeps the states of ended campaigns until it restarts."""


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_load_of_an_hour_leaves_nothing_behind(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_coordinator(lease_seconds=PATIENT)
    for role in ROLES:
        cluster.start_worker(role, simulated_seconds="0", scratch=str(tmp_path / role))
    tasks, wanted, used = 0, set[str](), list[dict[str, tuple[int, int]]]()
    for number in range(CAMPAIGNS):
        name = f"load-{number}"
        cluster.submit(plan(name=name))
        ended = cluster.until(lambda name=name: verdict(cluster.store, name), name)
        assert ended.verdict == "converged"
        state = whole_state(cluster.store, name)
        tasks += len(state.tasks)
        wanted |= set(labelled(state))
        used.append({role: _used(each.process.pid) for role, each in cluster.services.items()})
    print(f"{tasks} tasks; {len(wanted)} labels; {used[WARM - 1]} then {used[-1]}")
    assert not cluster.restarts
    computed = computations(cluster)
    assert set(computed) == wanted
    assert set(computed.values()) == {1}
    for role, (descriptors, memory) in used[-1].items():
        before, less = used[WARM - 1][role]
        assert descriptors <= before + SPARE, role
        assert memory <= less + GROWTH, role
    for name in list(cluster.services):
        started = cluster.stop_restarting(name)
        started.process.send_signal(signal.SIGTERM)
        assert started.ended() == 0
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []


def _used(pid: int) -> tuple[int, int]:
    """Descriptors and resident memory."""
    process = psutil.Process(pid)
    return process.num_fds(), process.memory_info().rss
