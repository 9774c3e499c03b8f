"""Real engines behind real services that are killed at random: the labels are those of one
undisturbed process."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import verdict
from tests.support.campaigns.lossy_delivery import check_counters
from tests.support.campaigns.small_campaign import labelled, state_of, write_spec
from tests.support.deployments.deployed_cluster import NAME, ROLES, Cluster, computed_twice

KILLS = 12


@pytest.mark.soak
def test_services_killed_at_random_label_the_frames_of_one_undisturbed_process(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    print(f"{KILLS} kills")
    chance, spec = random.Random(3), write_spec(tmp_path, name=NAME, max_attempts=40)
    peaceful = state_of(undisturbed)
    assert peaceful.finished is not None
    cluster.start_coordinator(lease_seconds="8")
    cluster.keep_running_engines(ROLES, tmp_path)
    cluster.submit_file(spec)
    victims = [*("coordinator", *ROLES) * (KILLS // 4), *ROLES[: KILLS % 4]]
    chance.shuffle(victims)
    for victim in victims:
        cluster.services[victim].wait_for("ready")
        time.sleep(chance.uniform(0.0, 4.0))
        cluster.kill(victim)
    assert verdict(cluster.store, NAME) is None
    state = cluster.finish()
    assert sum(cluster.restarts.values()) == KILLS
    assert labelled(state) == labelled(peaceful)
    assert len(labelled(state)) > 6
    assert state.finished is not None
    assert state.finished.verdict == peaceful.finished.verdict
    check_counters(state)
    assert computed_twice(cluster) == []
