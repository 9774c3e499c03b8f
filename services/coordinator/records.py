"""Building blocks of the state: persistent maps that pydantic can read and write, and a fast
`replace`.

`Table[V]` is an `immutables.Map` from str to V. Changing an entry copies one path of its tree, so a
decision costs the same in a small and in a large campaign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from immutables import Map
from pydantic_core import core_schema

V = TypeVar("V")


class _AsDict:
    """Lets pydantic read and write an `immutables.Map` as an object with sorted keys."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        inner = handler.generate_schema(dict[get_args(source)])  # type: ignore[misc]
        made = core_schema.no_info_after_validator_function(Map, inner)
        return core_schema.json_or_python_schema(
            json_schema=made,
            python_schema=core_schema.no_info_before_validator_function(
                lambda value: dict(value) if isinstance(value, Map) else value, made
            ),
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda value, serialize: serialize(dict(sorted(value.items()))), schema=inner
            ),
        )


Table = Annotated[Map[str, V], _AsDict]


if TYPE_CHECKING:
    from dataclasses import replace as replace
else:

    def replace(record: V, /, **changes: Any) -> V:
        """Does what `dataclasses.replace` does, several times faster, for frozen dataclasses with
        slots. Every event makes several copies. Raises AttributeError for an unknown field."""
        copy = _new(type(record))
        for put, get in _slots(type(record)):
            put(copy, get(record))
        for name, value in changes.items():
            _put(copy, name, value)
        return copy


_new, _put = object.__new__, object.__setattr__


@cache
def _slots(kind: type) -> tuple[tuple[Callable[[Any, Any], None], Callable[[Any], Any]], ...]:
    """Writer and reader of every field."""
    slots = (getattr(kind, field.name) for field in fields(kind))
    return tuple((slot.__set__, slot.__get__) for slot in slots)
