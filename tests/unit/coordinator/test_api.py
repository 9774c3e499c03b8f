"""The HTTP API over a campaign that a real coordinator serves: what it tells, to whom, and that it
never stands in the coordinator's way."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr, ValidationError

from dpstream.services.coordinator.http import read_access, server
from dpstream.services.coordinator.http.api import STUCK_AFTER, make_app
from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.http.server import serving
from dpstream.services.coordinator.ledger import archive, archive_mark
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.settings import CoordinatorSettings
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.errors import SpecError
from dpstream.shared.settings import read_settings
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import PROGRAMS
from tests.support.adapters.faulty_adapters import FlakyStore
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import key
from tests.support.campaigns.coordinator import CoordinatorHarness, first_task, small

pytestmark = pytest.mark.usefixtures("no_log_lines")
TOKEN = "a token of some length"
MARK = archive_mark.ArchiveMark(file="/kept/world.zip", sha256="0" * 64, size=1, time=0.0)


@pytest.fixture
def site(tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(FolderStore(tmp_path))


def client(site: CoordinatorHarness, token: str | None = None, **options: Any) -> TestClient:
    access = ReadAccess(site.coordinator)
    app = make_app(access, CoordinatorMetrics(access), SecretStr(token) if token else None)
    return TestClient(app, base_url="http://127.0.0.1:8080", **options)


def get(site: CoordinatorHarness, path: str) -> Any:
    answer = client(site).get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


# ------------------------------------------------------------------------------------ workers


def test_what_workers_state(site: CoordinatorHarness) -> None:
    assert get(site, "/workers") == {"queues": {}}
    stated = {"node-1": {"time": 5.0, "programs": {"tblite": "0.7.0"}}}
    site.store.put(PROGRAMS, json.dumps({"queues": {"label.tblite": stated}}).encode())
    assert get(site, "/workers")["queues"]["label.tblite"] == stated


# ---------------------------------------------------------------------------------- campaigns


def test_a_campaign_at_work(site: CoordinatorHarness) -> None:
    open_campaign = site.submit(small())
    while (
        open_campaign.state.exploration.round is None
        or not open_campaign.state.exploration.round.conditions
    ):
        site.work()
        site.step()
    (one,) = get(site, "/campaigns")["campaigns"]
    assert one == get(site, "/campaigns/world")
    where = [one[field] for field in ("standing", "stage", "version", "round")]
    assert where == ["running", "cold", 1, 1]
    assert one["headline"] == "stage cold (1 of 1) · committee 1 · round 1 of at most 20"
    assert one["labels"] == {
        "labelled": 6,
        "reused": 0,
        "audits": 0,
        "rejected": 0,
        "pending": 0,
    }
    assert one["tasks"] == {
        "explore": {"open": 2},
        "label": {"done": 2},
        "train": {"done": 2},
    }
    site.work()
    site.step()
    assert get(site, "/campaigns/world")["shares"] == {
        "methane 50 K": {"accurate": 16, "candidate": 4, "failed": 0}
    }


def test_the_members_errors_and_the_audit_are_told(site: CoordinatorHarness) -> None:
    open_campaign = site.submit(small())
    while not open_campaign.state.committee.version:
        site.work()
        site.step()
    errors = get(site, "/campaigns/world")["errors"]
    assert [(e["version"], e["member"], e["train"]) for e in errors] == [(1, 0, 0.03), (1, 1, 0.03)]
    while open_campaign.state.exploration.stage.audit is None:
        site.work()
        site.step()
    one = get(site, "/campaigns/world")
    audit = open_campaign.state.exploration.stage.audit
    assert one["audit"]["force"] == audit.force
    assert one["audit"]["frames"] == audit.frames


def test_an_unbounded_audit_error_is_told_as_none(site: CoordinatorHarness) -> None:
    open_campaign = site.submit(small())
    while open_campaign.state.exploration.stage.audit is None:
        site.work()
        site.step()
    exploration = open_campaign.state.exploration
    assert exploration.stage.audit is not None
    unbounded = exploration.stage.audit.model_copy(update={"force_upper": float("inf")})
    exploration = replace(exploration, stage=replace(exploration.stage, audit=unbounded))
    open_campaign.state = replace(open_campaign.state, exploration=exploration)
    assert get(site, "/campaigns/world")["audit"]["force_upper"] is None


def test_a_campaign_that_needs_a_person_says_why(site: CoordinatorHarness) -> None:
    site.submit(small())
    site.publish(m.CampaignPaused(id="p", campaign="world", time=0.0, why="the power goes"))
    site.step()
    one = get(site, "/campaigns/world")
    assert (one["standing"], one["paused"]) == ("paused", "the power goes")


def test_campaigns_that_ended_earlier_are_read_from_the_store(site: CoordinatorHarness) -> None:
    site.submit(small())
    state = site.finish()
    site.restart().open_all()
    assert not site.coordinator.open_campaigns
    (line,) = get(site, "/campaigns")["campaigns"]
    assert (line["standing"], line["verdict"]) == ("finished", "converged")
    one = get(site, "/campaigns/world")
    frames = frames_of(state)
    assert one["labels"]["labelled"] == sum(f.status == "labelled" for f in frames.values())
    keys = [label["key"] for label in get(site, "/campaigns/world/labels?limit=1000")]
    assert keys == [*sorted(state.labels.frames), *sorted(state.archive.settled)]


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_archived_campaigns_are_listed_on_request(site: CoordinatorHarness, earlier: bool) -> None:
    site.submit(small())
    last = site.finish().finished
    assert last is not None
    if earlier:
        site.restart().open_all()
    (one,) = get(site, "/campaigns")["campaigns"]
    assert one["archived"] is None
    archive_mark.mark_archived(site.store, last, MARK)
    told = get(site, "/campaigns")
    assert (told["campaigns"], told["archived"]) == ([], 1)
    (one,) = get(site, "/campaigns?archived=true")["campaigns"]
    assert (one["name"], one["archived"]) == ("world", "/kept/world.zip")
    assert get(site, "/campaigns/world")["archived"] == "/kept/world.zip"


def test_a_campaign_stays_archived_during_an_outage_of_the_store(
    site: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_access, "LOOK_EVERY", 0.0)
    site.submit(small())
    last = site.finish().finished
    assert last is not None
    archive_mark.mark_archived(site.store, last, MARK)
    access = ReadAccess(site.coordinator)
    assert [one.archived for one in access.campaigns()] == [MARK.file]
    site.coordinator.store = FlakyStore(site.store, lambda operation: True)
    assert [one.archived for one in access.campaigns()] == [MARK.file]


def test_an_outage_of_the_store_is_waited_for_once(site: CoordinatorHarness) -> None:
    """Every question waits until its time limit."""
    for name in ("a", "b", "c"):
        site.submit(small(name=name))
        site.finish(name)
    asked = list[str]()

    def fails(operation: str) -> bool:
        asked.append(operation)
        return True

    site.coordinator.store = FlakyStore(site.store, fails)
    access = ReadAccess(site.coordinator)
    assert [one.archived for one in access.campaigns()] == [None] * 3
    assert asked == ["get"]


def test_the_store_is_not_asked_again_for_a_mark_it_has(
    site: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_access, "LOOK_EVERY", 0.0)
    site.submit(small())
    last = site.finish().finished
    assert last is not None
    archive_mark.mark_archived(site.store, last, MARK)
    asked = list[str]()
    site.coordinator.store = FlakyStore(site.store, lambda operation: bool(asked.append(operation)))
    access = ReadAccess(site.coordinator)
    assert [access.campaigns()[0].archived for _ in range(3)] == [MARK.file] * 3
    assert asked == ["get"]


def test_the_store_is_not_asked_for_a_mark_at_every_request(site: CoordinatorHarness) -> None:
    site.submit(small())
    site.finish()
    asked = list[str]()
    site.coordinator.store = FlakyStore(site.store, lambda operation: bool(asked.append(operation)))
    access = ReadAccess(site.coordinator)
    for _ in range(3):
        access.campaigns()
    assert len(asked) == 1


def test_a_broken_campaign_and_dead_letters_are_shown(site: CoordinatorHarness) -> None:
    site.store.put("campaigns/sick/spec.json", b"{}")
    site.store.put("deadletters/" + "0" * 64, b"?")
    site.coordinator.open_all()
    told = get(site, "/campaigns")
    assert told["undecodable"] == 1
    assert [(c["name"], c["standing"]) for c in told["campaigns"]] == [("sick", "broken")]


@pytest.mark.parametrize("page", ["tasks", "labels"])
def test_a_damaged_segment_of_the_archive_is_one_line(site: CoordinatorHarness, page: str) -> None:
    open_campaign = site.submit(small())
    state = site.finish()
    stored = archive.write(site.store, "world", "1", state.archive)
    open_campaign.state = replace(state, archive=stored)
    site.coordinator.open_campaigns["world"] = open_campaign
    assert get(site, f"/campaigns/world/{page}")
    site.store.put(stored.segments[0].stored.uri, b"?")
    answer = client(site, raise_server_exceptions=False).get(f"/campaigns/world/{page}")
    assert answer.status_code == 503
    assert "archive" in answer.json()["detail"]


# ----------------------------------------------------------------------------- tasks and labels


def test_tasks_name_their_worker_and_progress(site: CoordinatorHarness) -> None:
    _, command = first_task(site)
    site.publish(site.world.answer(command)[0])
    site.heartbeat(command)
    site.step()
    (running,) = get(site, "/campaigns/world/tasks?status=running")
    assert running == {
        "task": command.task,
        "kind": "label",
        "title": command.title,
        "status": "running",
        "attempt": 1,
        "lapses": 0,
        "worker": "w",
        "progress": "half way",
    }
    assert get(site, "/campaigns/world/tasks?kind=train") == []
    assert len(get(site, "/campaigns/world/tasks?kind=label")) == 2
    assert len(get(site, "/campaigns/world/tasks?limit=1&offset=1")) == 1


def test_labels_by_status(site: CoordinatorHarness) -> None:
    open_campaign, command = first_task(site)
    site.claim(command)
    site.publish(*site.world.answer(command))
    site.step()
    done = get(site, "/campaigns/world/labels?status=labelled")
    assert {label["key"] for label in done} == {f.key for f in command.frames}  # type: ignore[attr-defined]
    frames = frames_of(open_campaign.state)
    assert all(label["label"] == frames[label["key"]].label for label in done)
    assert len(get(site, "/campaigns/world/labels")) == 6


def test_why_a_frame_was_labelled(site: CoordinatorHarness) -> None:
    site.submit(small())
    lines = get(site, f"/campaigns/world/why/{key('initial', 0)[:12]}")["lines"]
    assert lines[0] == f"frame {key('initial', 0)}"
    assert "to be labelled before the first training" in lines[1]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/campaigns/none", 404),
        ("/campaigns/none/tasks", 404),
        ("/campaigns/none/why/00", 404),
        ("/campaigns/world/why/nothing-like-it", 404),
        ("/campaigns/..%2fworld", 404),
        ("/campaigns/World", 422),
        ("/campaigns/" + "a" * 64, 422),
        ("/campaigns/world/tasks?limit=0", 422),
        ("/campaigns/world/tasks?limit=100000", 422),
        ("/campaigns/world/labels?offset=-1", 422),
        ("/docs", 404),
    ],
)
def test_what_is_not_there_or_makes_no_sense(
    site: CoordinatorHarness, path: str, status: int
) -> None:
    site.submit(small())
    assert client(site).get(path).status_code == status


def test_nothing_can_be_changed(site: CoordinatorHarness) -> None:
    site.submit(small())
    for path in ("/campaigns", "/campaigns/world", "/metrics", "/"):
        assert client(site).post(path, json={}).status_code == 405


def test_an_outage_of_the_store_is_no_fault_of_the_api(site: CoordinatorHarness) -> None:
    site.submit(small())
    site.coordinator.store = FlakyStore(site.store, lambda operation: True)
    answer = client(site).get("/campaigns/world/why/00")
    assert answer.status_code == 503
    assert client(site).get("/campaigns/world").status_code == 200


def test_the_api_describes_itself(site: CoordinatorHarness) -> None:
    described = get(site, "/openapi.json")
    assert described["openapi"].startswith("3.")
    assert "/campaigns/{name}/why/{frame}" in described["paths"]


# ------------------------------------------------------------------------------------- metrics


def test_metrics_count_what_the_books_hold(site: CoordinatorHarness) -> None:
    access = ReadAccess(site.coordinator)
    metrics = CoordinatorMetrics(access)
    open_campaign = site.submit(small())
    site.work()
    site.step()
    families = {f.name: f for f in text_string_to_metric_families(metrics.text().decode())}
    tasks = {
        (s.labels["kind"], s.labels["status"]): s.value for s in families["dpstream_tasks"].samples
    }
    assert tasks == {("label", "done"): 2, ("train", "open"): 2}
    waiting = {s.labels["queue"]: s.value for s in families["dpstream_tasks_waiting"].samples}
    assert waiting == {"train": 2}
    labels = {s.labels["status"]: s.value for s in families["dpstream_labels"].samples}
    assert labels["labelled"] == 6
    standings = {s.labels["standing"]: s.value for s in families["dpstream_campaigns"].samples}
    assert standings == {"running": 1, "paused": 0, "finished": 0, "broken": 0}
    decided = {s.name: s.value for s in families["dpstream_decide_seconds"].samples}
    assert decided["dpstream_decide_seconds_count"] >= 3
    assert {"dpstream_pool_frames", "dpstream_committee_version"} <= set(families)
    assert {"dpstream_dead_letters", "dpstream_audit_force_rmse"} <= set(families)
    assert open_campaign.state.committee.version == 0
    lost = families["dpstream_fleet_work_lost_seconds"].samples
    assert [(s.labels, s.value) for s in lost] == [({"campaign": "world"}, 0.0)]
    assert "dpstream_fleet_preemptions" in families


def test_two_coordinators_in_one_process_do_not_share_metrics(
    site: CoordinatorHarness, tmp_path: Path
) -> None:
    other = CoordinatorHarness(FolderStore(tmp_path / "other"))
    first, second = (
        CoordinatorMetrics(ReadAccess(site.coordinator)),
        CoordinatorMetrics(ReadAccess(other.coordinator)),
    )
    site.submit(small())
    assert b'campaign="world"' in first.text()
    assert b'campaign="world"' not in second.text()


# -------------------------------------------------------------------------------------- health


def test_ready_is_who_is_connected_and_alive_who_turns(site: CoordinatorHarness) -> None:
    asked = client(site)
    assert asked.get("/readyz").status_code == 503
    assert asked.get("/healthz").status_code == 200
    site.coordinator.connected = True
    assert asked.get("/readyz").status_code == 200
    site.coordinator.last_pass -= STUCK_AFTER + 1
    assert asked.get("/healthz").status_code == 503


@pytest.mark.slow
def test_an_outage_makes_it_unready_and_not_dead(site: CoordinatorHarness) -> None:
    bus = InProcessBus(site.bus.broker)  # type: ignore[attr-defined]
    site.coordinator.bus = bus
    stopping = threading.Event()
    thread = threading.Thread(target=site.coordinator.run, args=(stopping,))
    thread.start()
    try:
        _wait_for(lambda: site.coordinator.connected)
        bus.close()
        _wait_for(lambda: not site.coordinator.connected)
        assert client(site).get("/readyz").status_code == 503
        assert client(site).get("/healthz").status_code == 200
    finally:
        stopping.set()
        thread.join(timeout=10)


def _wait_for(met: Any) -> None:
    deadline = time.monotonic() + 10
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ------------------------------------------------------------------------------------ who may ask

PATHS = ("/", "/campaigns", "/campaigns/world", "/campaigns/world/tasks", "/metrics")
BASIC = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A campaign behind a token; the client does not send it."""
    site = CoordinatorHarness(FolderStore(tmp_path_factory.mktemp("guarded")))
    site.submit(small())
    return client(site, TOKEN)


@pytest.mark.parametrize("path", [*PATHS, "/openapi.json", "/nothing"])
@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Token {TOKEN}",
        "Basic !!",
        "Basic " + base64.b64encode(b"anyone").decode(),
        "Bearer \u00e4".encode("latin-1"),
    ],
)
def test_without_the_token_nothing_is_told(guarded: TestClient, path: str, header: Any) -> None:
    headers = {"Authorization": header} if header else {}
    answer = guarded.get(path, headers=headers)
    assert answer.status_code == 401
    assert "world" not in answer.text
    assert TOKEN not in answer.text


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {BASIC}"])
def test_with_the_token_everything_is(guarded: TestClient, header: str) -> None:
    headers = {"Authorization": header}
    assert {guarded.get(path, headers=headers).status_code for path in PATHS} == {200}


def test_health_needs_no_token(site: CoordinatorHarness) -> None:
    asked = client(site, TOKEN)
    assert asked.get("/healthz").status_code == 200
    assert asked.get("/readyz").status_code == 503


def test_without_a_token_no_other_name_than_this_machines_is_answered(
    site: CoordinatorHarness,
) -> None:
    asked = client(site)
    for host, status in (("127.0.0.1:8080", 200), ("localhost", 200), ("evil.example", 400)):
        assert asked.get("/campaigns", headers={"Host": host}).status_code == status


GOOD = {"broker": "amqp://u:p@localhost/", "store": "runs"}


def test_serving_beyond_this_machine_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="requires DPSTREAM_API_TOKEN"):
        read_settings(CoordinatorSettings, **GOOD, http_host="0.0.0.0")
    monkeypatch.setenv("DPSTREAM_API_TOKEN", "short")
    with pytest.raises(SpecError, match="DPSTREAM_API_TOKEN") as refused:
        read_settings(CoordinatorSettings, **GOOD)
    assert "short" not in str(refused.value).replace("too_short", "")
    monkeypatch.setenv("DPSTREAM_API_TOKEN", TOKEN)
    given = read_settings(CoordinatorSettings, **GOOD, http_host="0.0.0.0")
    assert TOKEN not in repr(given)
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        monkeypatch.delenv("DPSTREAM_API_TOKEN", raising=False)
        assert read_settings(CoordinatorSettings, **GOOD, http_host=host).api_token is None


def test_settings_are_frozen() -> None:
    given = read_settings(CoordinatorSettings, **GOOD)
    with pytest.raises(ValidationError):
        given.http_port = 1


# ----------------------------------------------------------------------------------- the server


@pytest.fixture
def served(site: CoordinatorHarness) -> Iterator[str]:
    site.submit(small())
    access = ReadAccess(site.coordinator)
    with serving(make_app(access, CoordinatorMetrics(access), None), "127.0.0.1", 0) as (
        host,
        port,
    ):
        yield f"http://{host}:{port}"


@pytest.mark.slow
def test_it_answers_over_http_while_the_campaign_goes_on(
    site: CoordinatorHarness, served: str
) -> None:
    seen, over, begun = set[str](), threading.Event(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=served) as asked:
            while not over.is_set():
                for path in ("/campaigns/world", "/campaigns/world/tasks", "/metrics"):
                    assert asked.get(path).status_code == 200
                seen.add(asked.get("/campaigns/world").json()["headline"])
                begun.set()

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(timeout=10)
    assert site.finish().finished
    _wait_for(lambda: any(headline.startswith("converged") for headline in seen))
    over.set()
    thread.join(timeout=10)
    assert len(seen) > 1


def test_the_dashboard_is_one_page_that_loads_nothing_from_elsewhere(served: str) -> None:
    answer = httpx.get(served)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert "innerHTML" not in answer.text


def test_an_address_in_use_is_one_line(site: CoordinatorHarness, served: str) -> None:
    port = int(served.rpartition(":")[2])
    access = ReadAccess(site.coordinator)
    app = make_app(access, CoordinatorMetrics(access), None)
    with (
        pytest.raises(SpecError, match=f"DPSTREAM_HTTP_PORT: 127.0.0.1:{port}: "),
        serving(app, "127.0.0.1", port),
    ):
        raise AssertionError


def half_requests(served: str, count: int) -> list[socket.socket]:
    """Connections that begin a request and do not end it."""
    host, _, port = served.removeprefix("http://").partition(":")
    opened = [socket.create_connection((host, int(port)), timeout=10) for _ in range(count)]
    for each in opened:
        with suppress(OSError):
            each.sendall(b"GET / HT")
    return opened


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.slow
def test_half_requests_take_few_connections_and_are_closed(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.5)
    opened = half_requests(served, 3 * server.MOST_CONNECTIONS)
    try:
        assert all(map(is_closed, opened))
        assert httpx.get(f"{served}/healthz").status_code == 200
    finally:
        for each in opened:
            each.close()


def test_half_requests_keep_no_health_check_from_its_answer(served: str) -> None:
    opened = half_requests(served, server.MOST_CONNECTIONS + 1)
    try:
        for _ in range(3):
            assert httpx.get(f"{served}/healthz").status_code == 200
        assert is_closed(opened[0])
    finally:
        for each in opened:
            each.close()


def test_a_kept_connection_is_answered_again(served: str) -> None:
    with httpx.Client(base_url=served) as kept:
        for _ in range(3):
            assert kept.get("/healthz").status_code == 200


def test_numbers_of_a_query_are_bounded(served: str) -> None:
    query = "offset=99999999999999999999"
    assert httpx.get(f"{served}/campaigns/world/tasks?{query}").status_code == 422
