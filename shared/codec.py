"""Messages as bytes, and where they go: the union of all of them, told apart by their `type`."""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, Union

from pydantic import Field, GetPydanticSchema, TypeAdapter, ValidationError

from dpstream.shared.messages import COMMANDS, EVENTS, Command, Message, tags_of

MAX_BODY = 64 * 1024
"""Bytes; larger things are objects in the store."""


def _any_of(*kinds: type[Message]) -> GetPydanticSchema:
    """Validation and serialization as whichever of `kinds` a message is."""
    union: Any = Annotated[Union[kinds], Field(discriminator="type")]  # noqa: UP007
    return GetPydanticSchema(lambda _, schema_of: schema_of(union))


AnyCommand = Annotated[Command, _any_of(*COMMANDS)]
AnyMessage = Annotated[Message, _any_of(*COMMANDS, *EVENTS)]

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyMessage)


def encode(message: Message) -> bytes:
    """Canonical JSON bytes of a message (ValueError above 64 KB)."""
    body = message.model_dump_json().encode()
    if len(body) > MAX_BODY:
        raise ValueError(f"{type(message).__name__} is {len(body)} bytes, above {MAX_BODY}")
    return body


def decode(body: bytes) -> Any:
    """The message in `body`; pydantic.ValidationError when it is none of ours."""
    return ADAPTER.validate_json(body)


def understood(body: bytes) -> Any:
    """The message in `body`; None for what is too long or none of ours."""
    if len(body) > MAX_BODY:
        return None
    try:
        return decode(body)
    except ValidationError:
        return None


def queue_of(command: Command) -> str:
    return command.QUEUE.format(getattr(command, "capability", ""))


def kind_of(message: Message | type[Message]) -> str:
    """The name of a message's kind, without the version: `models-ready`."""
    kind = message if isinstance(message, type) else type(message)
    return names_of(kind)[0]


@cache
def names_of(kind: type[Message]) -> tuple[str, ...]:
    """All names of a kind that may be a topic's: the present one, then former ones."""
    return tuple(tag.partition("/")[0] for tag in tags_of(kind))


def topic_of(event: Message) -> str:
    return f"{event.campaign}.{kind_of(event)}"


def message_schema() -> str:
    """JSON Schema of everything that crosses the bus, as committed in `docs/`."""
    return json.dumps(ADAPTER.json_schema(), indent=1, sort_keys=True) + "\n"
