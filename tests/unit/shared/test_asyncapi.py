"""The AsyncAPI document is that of the messages, and hangs together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpstream.shared import messages as m
from dpstream.shared.asyncapi import document
from dpstream.shared.bus.topology import declared, matches
from dpstream.shared.codec import topic_of

COMMITTED = Path(__file__).parents[3] / "docs" / "asyncapi.json"
INTERNAL = {m.LeaseLapsed, m.TaskRevoked, m.ManifestFrozen, m.TrainingJudged, m.RoundJudged}
INTERNAL |= {
    m.PlanChanged,
    m.AmendmentRefused,
    m.BatchResolved,
    m.WorkersMissing,
    m.TrustChanged,
    m.TaskCancelled,
    m.TaskAbandoned,
}
"""For the ledger alone: they never cross the bus."""


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(document())
    return loaded


def test_the_committed_document_is_that_of_the_messages() -> None:
    assert COMMITTED.read_text() == document(), (
        "docs/asyncapi.json has drifted: `make schema` writes it again"
    )


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolved(api: dict[str, Any], reference: str) -> Any:
    found: Any = api
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return resolved(api, found["$ref"]) if set(found) == {"$ref"} else found


def test_every_reference_leads_somewhere(api: dict[str, Any]) -> None:
    found = set(references(api))
    assert len(found) > 100
    for reference in found:
        assert reference.startswith("#/")
        assert resolved(api, reference)


def test_operations_speak_of_their_channels_messages(api: dict[str, Any]) -> None:
    """What AsyncAPI 3 asks beyond its schema: messages are named through the channel."""
    assert api["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= api["info"].keys()
    used = set()
    for operation in api["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        used.add(channel.removeprefix("#/channels/"))
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{channel}/messages/")
    assert used == api["channels"].keys()
    for channel in api["channels"].values():
        for name in channel.get("parameters", {}):
            assert f"{{{name}}}" in channel["address"]


def test_every_message_that_crosses_the_bus_is_in_it(api: dict[str, Any]) -> None:
    concrete = {k for k in vars(m).values() if isinstance(k, type) and issubclass(k, m.Message)}
    concrete = {kind for kind in concrete if "type" in kind.model_fields}
    assert api["components"]["messages"].keys() == {k.__name__ for k in concrete - INTERNAL}
    for kind in (kind for kind in m.EVENTS if kind not in INTERNAL):
        event = kind.model_construct(campaign="methane")
        (channel,) = (
            c
            for c in api["channels"].values()
            if c["address"].replace("{campaign}", "methane") == topic_of(event)
        )
        assert list(channel["messages"]) == [kind.__name__]
        assert matches("*.*", topic_of(event))


def test_work_queues_are_those_of_the_topology(api: dict[str, Any]) -> None:
    queues = {n: c for n, c in api["channels"].items() if n.startswith("queue-")}
    for channel in queues.values():
        assert declared(channel["address"].replace("{capability}", "tblite")) is not None
    carried = {name for channel in queues.values() for name in channel["messages"]}
    assert carried == {kind.__name__ for kind in m.COMMANDS}
