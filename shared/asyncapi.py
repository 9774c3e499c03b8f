"""The messages on the bus as an AsyncAPI 3 document.

Generated from the message models and committed as `docs/asyncapi.json`, for readers and tools that
do not import dpstream.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from inspect import getdoc
from typing import Any

from dpstream.shared import messages as m
from dpstream.shared.bus.topology import TASKS, exchange_of
from dpstream.shared.codec import ADAPTER, kind_of

OUTSIDE: tuple[m.Publisher, ...] = ("operator", "generator")
"""Publishers outside dpstream's own services."""
SCHEMAS = "#/components/schemas/"


def document() -> str:
    """The document as JSON text."""
    received = _published_by(*OUTSIDE)
    sent = _published_by(*m.SERVICES, "coordinator")
    queues = sorted({kind.QUEUE for kind in m.COMMANDS})
    schemas = ADAPTER.json_schema(ref_template=SCHEMAS + "{model}")["$defs"]
    events = dict.fromkeys((*received, *sent))
    api = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "dpstream",
            "version": version("dpstream"),
            "description": "Concurrent learning of interatomic potentials as a stream of events. "
            "Bodies are JSON of at most 64 KB; larger things are objects in the store.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            **{kind_of(event): _topic(event) for event in events},
            **{_channel_name(queue): _queue(queue) for queue in queues},
        },
        "operations": {
            **dict(_operations("receive", received)),
            **dict(_operations("send", sent)),
            **{
                f"send-{_channel_name(q)}": _operation("send", _channel_name(q), _of(q))
                for q in queues
            },
        },
        "components": {
            "messages": {kind.__name__: _message(kind) for kind in (*events, *m.COMMANDS)},
            "schemas": schemas,
        },
    }
    return json.dumps(api, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _published_by(*roles: m.Publisher) -> list[type[m.Event]]:
    return [kind for kind in m.EVENTS if set(roles) & set(kind.PUBLISHERS)]


def _channel_name(queue: str) -> str:
    """Name of a queue's channel; `label.{}` stands for one queue per capability."""
    return f"queue-{queue.partition('.')[0]}"


def _topic(event: type[m.Message]) -> dict[str, Any]:
    return {
        "address": f"{{campaign}}.{kind_of(event)}",
        "parameters": {"campaign": {"description": "name of the campaign"}},
        "messages": _references([event]),
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange_of(kind_of(event)), "type": "topic", "durable": True},
            }
        },
    }


def _queue(queue: str) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": queue.replace("{}", "{capability}"),
        "description": f"Work queue, reached through the direct exchange {TASKS}.",
        "messages": _references(_of(queue)),
        "bindings": {"amqp": {"is": "queue", "queue": {"name": queue, "durable": True}}},
    }
    if "{}" in queue:
        channel["parameters"] = {"capability": {"description": "labeling code"}}
    return channel


def _of(queue: str) -> list[type[m.Command]]:
    return [kind for kind in m.COMMANDS if queue == kind.QUEUE]


def _references(kinds: Iterable[type[m.Message]]) -> dict[str, Any]:
    names = [kind.__name__ for kind in kinds]
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _operations(
    action: str, kinds: Iterable[type[m.Message]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in kinds:
        yield f"{action}-{kind_of(kind)}", _operation(action, kind_of(kind), [kind])


def _operation(action: str, channel: str, kinds: Iterable[type[m.Message]]) -> dict[str, Any]:
    """`action` is seen from dpstream: `receive` for what others send."""
    of = f"#/channels/{channel}"
    messages = [{"$ref": f"{of}/messages/{kind.__name__}"} for kind in kinds]
    return {"action": action, "channel": {"$ref": of}, "messages": messages}


def _message(kind: type[m.Message]) -> dict[str, Any]:
    return {
        "name": kind.model_fields["type"].default,
        "summary": " ".join((getdoc(kind) or "").split()),
        "contentType": "application/json",
        "payload": {"$ref": SCHEMAS + kind.__name__},
    }
