"""A campaign on a deployment from the manifests in `k8s/`, on any cluster: `make k8s-test`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.campaigns.small_campaign import COLD, write_spec
from tests.support.deployments.kube_deployment import KubeDeployment

pytestmark = [pytest.mark.server, pytest.mark.timeout(3600)]

NAME = "small"


def test_the_manifests_run_a_campaign_with_a_generator(
    kube_deployment: KubeDeployment, tmp_path: Path
) -> None:
    """Workers exist only while there is something to do. On the way the coordinator's pod is
    deleted."""
    kube, began = kube_deployment, time.monotonic()
    kube.start(campaign=NAME)
    ready = time.monotonic()
    assert not kube.listed("jobs")

    # What a generator offers is random, and so is whether a model of seconds is stable.
    spec = write_spec(tmp_path / "campaign", stages=[COLD], verification={"nve_ps": 0.0})
    kube.prepare(spec)
    submission = kube.start_client("submit", NAME)
    kube.until(lambda: kube.has_succeeded(submission), "the submission")
    ended = kube.start_client("check", NAME)
    generator = kube.start_generator()
    kube.until(lambda: kube.workers()["explorers"], "explorers")
    kube.kubectl("delete", "pod", "dpstream-coordinator-0")
    kube.until_ready("coordinator")

    kube.until(lambda: kube.has_succeeded(generator), "the verdicts")
    kube.until(lambda: kube.has_succeeded(ended), "the campaign's end")
    finished = time.monotonic()
    kube.until(lambda: not kube.active_jobs() and not kube.workers(), "no worker is left")
    assert kube.most.keys() == {"trainers", "explorers", "labelers"}
    print(
        f"ready {ready - began:.0f} s, campaign {finished - ready:.0f} s, no worker left after "
        f"{time.monotonic() - finished:.0f} s; most workers {dict(kube.most)}"
    )
