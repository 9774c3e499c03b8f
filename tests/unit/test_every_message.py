"""Every class of messages is known wherever messages are carried, decided upon or shown.

A class that one of these places does not know fails here under its own name.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import get_type_hints

import pytest
from rich.console import Console, RenderableType

import dpstream.services.explorer.handlers as explorer
import dpstream.services.labeler.handlers as labeler
import dpstream.services.trainer.handlers as trainer
from dpstream.report import charts
from dpstream.report.lanes import Clock, activity, service_shares
from dpstream.report.page import render
from dpstream.services.coordinator.apply import APPLY, apply
from dpstream.services.coordinator.apply.proposals import proposal_id
from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.ledger.ledger import load_state, read_messages
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.campaign import Status
from dpstream.services.coordinator.views.committees import Committees
from dpstream.services.coordinator.views.frames import History
from dpstream.services.coordinator.views.overview import overview
from dpstream.services.coordinator.views.rounds import Rounds
from dpstream.services.coordinator.views.work import Span, Work
from dpstream.shared import messages as m
from dpstream.shared.access import ROLES
from dpstream.shared.asyncapi import document
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.bus.topology import declared
from dpstream.shared.codec import decode, encode, kind_of, names_of
from dpstream.shared.store.folder import FolderStore
from dpstream.terminal.ledger_lines import LedgerLines
from dpstream.terminal.status import screen, summary
from tests.support.campaigns import sample_ledger
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.sample_messages import example

HANDLERS = {
    "trainer": trainer.HANDLERS,
    "explorer": explorer.HANDLERS,
    "labeler": labeler.HANDLERS,
}
API = json.loads(document())
SCHEMA = Path(__file__).parents[2] / "docs" / "messages.schema.json"

every = pytest.mark.parametrize("kind", [*m.COMMANDS, *m.EVENTS], ids=kind_of)
every_command = pytest.mark.parametrize("kind", m.COMMANDS, ids=kind_of)
every_event = pytest.mark.parametrize("kind", m.EVENTS, ids=kind_of)
every_result = pytest.mark.parametrize("kind", m.RESULTS, ids=kind_of)


def task_of(kind: type[m.Command]) -> str:
    return f"the-{kind_of(kind)}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """A campaign with one claimed task of every class."""
    writer = sample_ledger.LedgerWriter(tmp_path_factory.mktemp("root"))
    writer.beginning()
    offer = writer.offer("first")
    for kind in m.COMMANDS:
        own = kind.model_fields.keys() - m.Command.model_fields.keys()
        fields = {name: getattr(example(kind), name) for name in own}
        if kind is m.Screen:
            fields |= {"proposal": proposal_id(offer)}
        writer.work(kind, task_of(kind), f"{kind.SERVICE}-0", **fields)
    return writer.write()


@pytest.fixture(scope="module")
def state(store: FolderStore) -> State:
    return load_state(store, sample_ledger.NAME)


@pytest.fixture(scope="module")
def spans(store: FolderStore) -> list[Span]:
    return Work.of(read_messages(store, sample_ledger.NAME)).spans()


# ------------------------------------------------------------------------------- carried


@every
def test_the_codec_reads_what_it_wrote(kind: type[m.Message]) -> None:
    message = example(kind)
    assert decode(encode(message)) == message
    assert type(decode(encode(message))) is kind


@every_event
def test_exactly_its_publishers_may_publish_it(kind: type[m.Event]) -> None:
    for name, role in ROLES.items():
        granted = set(role.publishes) & set(names_of(kind))
        assert granted == (set(names_of(kind)) if name in kind.PUBLISHERS else set()), name
    assert set(kind.PUBLISHERS) <= ROLES.keys()


@every_command
def test_its_service_takes_it_off_its_queue_and_handles_it(kind: type[m.Command]) -> None:
    queue = declared(kind.QUEUE.format("tblite"))
    assert queue is not None
    assert [name for name, role in ROLES.items() if queue.name in role.consumes] == [kind.SERVICE]
    assert [name for name, table in HANDLERS.items() if kind in table] == [kind.SERVICE]


@every_result
def test_the_handler_of_its_command_returns_it(kind: type[m.Result]) -> None:
    handler = HANDLERS[kind.ANSWERS.SERVICE][kind.ANSWERS]
    assert get_type_hints(handler)["return"] is kind
    assert kind.PUBLISHERS == (kind.ANSWERS.SERVICE,)


@every_command
def test_it_has_one_result(kind: type[m.Command]) -> None:
    assert len([result for result in m.RESULTS if result.ANSWERS is kind]) == 1


@every
def test_the_committed_documents_list_it(kind: type[m.Message]) -> None:
    tags = json.loads(SCHEMA.read_text())["discriminator"]["mapping"]
    assert {tag for tag, of in tags.items() if of.endswith(f"/{kind.__name__}")} == {
        *m.tags_of(kind)
    }


@every_event
def test_asyncapi_has_a_channel_for_it_if_it_is_published(kind: type[m.Event]) -> None:
    assert (kind_of(kind) in API["channels"]) is bool(kind.PUBLISHERS)
    sent = set(kind.PUBLISHERS) & {*m.SERVICES, "coordinator"}
    assert (f"send-{kind_of(kind)}" in API["operations"]) is bool(sent)
    assert (f"receive-{kind_of(kind)}" in API["operations"]) is (sent != set(kind.PUBLISHERS))


@every_command
def test_asyncapi_has_it_in_its_queue(kind: type[m.Command]) -> None:
    (channel,) = (c for c in API["channels"].values() if kind.__name__ in c["messages"])
    assert channel["bindings"]["amqp"]["queue"]["name"] == kind.QUEUE


# ------------------------------------------------------------------------------- decided upon


@every
def test_the_state_knows_what_it_changes(kind: type[m.Message]) -> None:
    assert kind in APPLY, f"services/coordinator/apply/__init__.py: {kind.__name__} is not in APPLY"


def test_only_messages_about_workers_are_without_effect() -> None:
    without = {kind for kind, change in APPLY.items() if change.__name__ == "_no_effect"}
    assert without == {m.TaskHeartbeat, m.WorkerStarted, m.TrainerStarted}


def test_a_message_of_no_known_class_is_an_error(state: State) -> None:
    class Unknown(m.TaskEvent):
        PUBLISHERS = ("trainer",)

    unknown = Unknown(id="x", campaign=sample_ledger.NAME, time=0.0, task="t", attempt=1)
    with pytest.raises(TypeError, match="Unknown is not in the table APPLY"):
        decide(state, unknown)


@every_command
def test_a_new_task_of_it_is_alive(kind: type[m.Command], state: State) -> None:
    assert state.alive(kind) == 1
    assert tasks_of(state)[task_of(kind)].status == "running"


@every_result
def test_a_task_ends_with_its_result(kind: type[m.Result], state: State) -> None:
    update = {"task": task_of(kind.ANSWERS), "attempt": 1}
    result = example(kind).model_copy(update=update)
    after = apply(state, result)
    assert tasks_of(after)[result.task].status == "done"
    assert apply(after, result) is after, "delivered twice"


@every_result
def test_a_result_of_another_task_changes_nothing(kind: type[m.Result], state: State) -> None:
    others = (command for command in m.COMMANDS if command is not kind.ANSWERS)
    for other in others:
        result = example(kind).model_copy(update={"task": task_of(other), "attempt": 1})
        assert apply(state, result) is state


@every
def test_the_policy_ignores_its_own_messages_and_no_others(
    kind: type[m.Message], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[m.Message] = []
    monkeypatch.setattr(
        "dpstream.services.coordinator.policy.apply",
        lambda state, event: folded.append(event) or state,
    )
    assert decide(state, example(kind)) == (state, ())
    own = issubclass(kind, m.Command) or kind in OWN
    assert folded == ([] if own else [example(kind)])


OWN = {
    m.ModelsReady,
    m.ManifestFrozen,
    m.TrainingJudged,
    m.RoundJudged,
    m.StructuresJudged,
    m.TrustChanged,
    m.StageEnded,
    m.TaskCancelled,
    m.TaskAbandoned,
    m.AmendmentRefused,
    m.PlanChanged,
    m.CampaignFinished,
}
"""Decisions that only the coordinator may publish."""


# ------------------------------------------------------------------------------- shown


def printed(what: RenderableType) -> list[str]:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text().splitlines()


@every_command
def test_status_and_watch_show_it_in_its_services_row(
    kind: type[m.Command], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.terminal.status.SHOWN", 100)
    status = Status.of(state, Committees())
    for view in (summary(status), screen(status, 0.0, "")):
        (row,) = (line for line in printed(view) if line.startswith(kind.SERVICE))
        assert kind.__name__.lower() in row.replace(";", "").split()


@every_command
def test_the_report_has_its_spans(
    kind: type[m.Command], spans: list[Span], store: FolderStore
) -> None:
    of = {(s.kind, s.service) for s in spans if s.title == kind.__name__.lower()}
    assert of == {(kind_of(kind), kind.SERVICE)}
    (share,) = (share for share in service_shares(spans) if share.service == kind.SERVICE)
    assert share.tasks >= len(m.commands_of(kind.SERVICE))
    plot = charts.lanes(spans, Clock(activity(spans)))
    assert any(rect.kind.split()[0] == f"k-{kind_of(kind)}" for rect in plot.rects)


@every_command
def test_the_page_has_it_in_the_legend_of_the_lanes(kind: type[m.Command], html: str) -> None:
    assert f"</svg>{kind_of(kind)}</span>" in html
    assert '[class^="k-"] { fill:' in html, "a colour for every kind"


@pytest.fixture(scope="module")
def html(store: FolderStore) -> str:
    return render(store, sample_ledger.NAME)


@every
def test_every_projection_takes_it_in(kind: type[m.Message], store: FolderStore) -> None:
    messages = [*read_messages(store, sample_ledger.NAME), example(kind)]
    assert Work.of(messages).last >= example(kind).time
    for projection in (Committees, History, Rounds):
        assert projection.of(messages)


@every
def test_logs_have_a_line_for_it(kind: type[m.Message]) -> None:
    lines = list(LedgerLines().of([example(kind)]))
    if kind is m.ManifestFrozen:  # its content follows from other lines
        assert lines == []
    else:
        assert kind_of(kind) in lines[0].split()
        assert isinstance(example(kind).describe(), str)


@every_command
def test_metrics_and_overview_count_it(kind: type[m.Command], state: State, metrics: str) -> None:
    assert overview(state).tasks[kind_of(kind)]["running"] == 1
    labels = f'campaign="{sample_ledger.NAME}",kind="{kind_of(kind)}",status="running"'
    assert f"dpstream_tasks{{{labels}}} 1.0" in metrics


@pytest.fixture(scope="module")
def metrics(store: FolderStore) -> str:
    coordinator = Coordinator(InProcessBus(), store)
    coordinator.open(sample_ledger.NAME)
    return CoordinatorMetrics(ReadAccess(coordinator)).text().decode()
