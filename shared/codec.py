"""Encoding, decoding and addressing of messages.

The codec is one union of all message classes, discriminated by the field `type`. It also derives
from a message's class its work queue, or its topic, and the JSON Schema committed in `docs/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Annotated, Any, Union

from pydantic import Field, GetPydanticSchema, TypeAdapter, ValidationError

from dpstream.shared.messages import COMMANDS, EVENTS, Command, Event, Message, TaskEvent, tags_of

MAX_BODY = 64 * 1024
"""Bytes of an encoded message; larger contents are objects in the store."""


def _any_of(*kinds: type[Message]) -> GetPydanticSchema:
    """Validation and serialization by the class among `kinds` that a message belongs to."""
    union: Any = Annotated[Union[kinds], Field(discriminator="type")]  # noqa: UP007
    return GetPydanticSchema(lambda _, schema_of: schema_of(union))


AnyCommand = Annotated[Command, _any_of(*COMMANDS)]
AnyMessage = Annotated[Message, _any_of(*COMMANDS, *EVENTS)]

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyMessage)


def encode(message: Message) -> bytes:
    """Canonical JSON bytes of a message. Raises ValueError above 64 KB."""
    body = message.model_dump_json().encode()
    if len(body) > MAX_BODY:
        raise ValueError(
            f"{type(message).__name__} is {len(body)} bytes; at most {MAX_BODY} allowed"
        )
    return body


def decode(body: bytes) -> Any:
    """The message in `body`. Raises pydantic.ValidationError if it is not a dpstream message."""
    return ADAPTER.validate_json(body)


def decode_or_none(body: bytes) -> Any:
    """The message in `body`; None if it is too long or not a dpstream message."""
    if len(body) > MAX_BODY:
        return None
    try:
        return decode(body)
    except ValidationError:
        return None


def decode_leniently(body: bytes) -> Any:
    """As `decode_or_none`, and of a task's event without the fields that this version does not
    know: a newer worker may have added some."""
    if len(body) > MAX_BODY:
        return None
    try:
        return decode(body)
    except ValidationError as error:
        unknown = [e["loc"][1:] for e in error.errors() if e["type"] == "extra_forbidden"]
    if not unknown:
        return None
    document = json.loads(body)
    for path in unknown:
        _remove(document, path)
    message = decode_or_none(json.dumps(document).encode())
    return message if isinstance(message, TaskEvent) else None


def _remove(document: Any, path: Sequence[Any]) -> None:
    *outer, last = path
    for name in outer:
        document = document[name]
    del document[last]


def is_newer(body: bytes, campaign: str, kind: str) -> bool:
    """Whether `body`, published as a `kind` of event of `campaign`, is a message of a newer version
    of the package: of a kind, or a version of a kind, that this one does not know."""
    try:
        document = json.loads(body) if len(body) <= MAX_BODY else None
    except (ValueError, RecursionError):
        return False
    if not isinstance(document, dict) or document.get("campaign") != campaign:
        return False
    tag = str(document.get("type"))
    return tag.partition("/")[0] == kind and tag not in chain.from_iterable(map(tags_of, EVENTS))


def queue_of(command: Command) -> str:
    return command.QUEUE.format(getattr(command, "capability", ""))


def kind_of(message: Message | type[Message]) -> str:
    """The name of a message's kind, without the version: `models-ready`."""
    kind = message if isinstance(message, type) else type(message)
    return names_of(kind)[0]


@cache
def names_of(kind: type[Message]) -> tuple[str, ...]:
    """All names under which a kind of event may be published: the current one, then former ones."""
    return tuple(tag.partition("/")[0] for tag in tags_of(kind))


def topic_of(event: Message) -> str:
    return f"{event.campaign}.{kind_of(event)}"


def is_published_under(message: Message, topic: str) -> bool:
    """Whether the message is an event that belongs under `topic`: of this campaign and kind. The
    broker checks the rights of publishers by the topic, so that nothing else may be believed."""
    campaign, _, kind = topic.partition(".")
    return (
        isinstance(message, Event)
        and campaign == message.campaign
        and kind in names_of(type(message))
    )


def message_schema() -> str:
    """JSON Schema of all messages, as committed in `docs/`."""
    return json.dumps(ADAPTER.json_schema(), indent=1, sort_keys=True) + "\n"
