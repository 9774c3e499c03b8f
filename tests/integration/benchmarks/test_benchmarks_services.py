"""The benchmarks of the services run, at a tiny size, and print what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.services.__main__ import BENCHMARKS, TINY
from benchmarks.services.counted import CountedStore
from benchmarks.services.figures import milliseconds, show
from benchmarks.services.idle import per
from benchmarks.services.site import Servers
from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.shared.store.folder import FolderStore

SAID = {
    "idle": ("no-op", "tblite", "98 ms", "PUT"),
    "latency": ("decide + encode", "durable event → command", "5.2 ms", "9.6 ms"),
    "throughput": ("one by one", "in bundles of 20", "1,181 /s", "PUT"),
    "fresh-label": ("training task",),
    "ledger": ("applied and appended", "replayed", "restart"),
}
LONG = {"idle", "throughput", "fresh-label", "ledger"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.soak if n in LONG else ()) for n in BENCHMARKS]
)
def test_it_says_what_it_measured(
    name: str,
    rabbit_node: RabbitNode,
    seaweed: SeaweedServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = list(BENCHMARKS[name](Servers(rabbit_node, seaweed), TINY))
    assert all(figure.measured or figure.anchor for figure in figures)
    show(name, figures)
    printed = capsys.readouterr().out
    assert [word for word in SAID[name] if word not in printed] == []
    assert "load average" in printed


def test_every_request_is_counted(tmp_path: Path) -> None:
    store = CountedStore(FolderStore(tmp_path))
    store.put("a", b"1")
    assert not store.create("a", b"2")
    assert store.get("a") == b"1"
    assert store.exists("a")
    assert list(store.list("")) == ["a"]
    store.delete("a")
    assert store.requests == {"PUT": 2, "GET": 1, "HEAD": 1, "LIST": 1, "DELETE": 1}
    assert per(store.requests, 2) == "1.00 PUT, 0.50 GET, 0.50 HEAD, 0.50 LIST"


def test_better_is_the_anchor_over_the_median() -> None:
    figure = milliseconds("x", [0.001, 0.002, 0.9], anchor=98.0)
    assert figure.measured.startswith("2 ms median, 900 ms p95")
    assert figure.better == pytest.approx(49.0)
