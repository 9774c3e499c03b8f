"""Building blocks of the state: persistent maps that pydantic can read and write, compact sets of
keys, and a fast `replace`.

`Table[V]` is an `immutables.Map` from str to V. Changing an entry copies one path of its tree, so a
decision costs the same in a small and in a large campaign.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args

import numpy as np
from immutables import Map
from pydantic import ConfigDict
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

KEY = 16
"""Bytes of a key in a `KeySet`."""


@dataclass(frozen=True)
class KeySet:
    """A set of keys that takes 16 bytes for each of them. A key is written in 32 hexadecimal
    digits, with or without hyphens: the key of a frame, or a UUID."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64"
    )

    packed: bytes = b""
    """The keys, sorted."""

    @staticmethod
    def of(keys: Iterable[str]) -> KeySet:
        return KeySet.union([KeySet(bytes.fromhex("".join(keys).replace("-", "")))])

    def __len__(self) -> int:
        return len(self.packed) // KEY

    def __contains__(self, key: str) -> bool:
        try:
            packed = bytes.fromhex(key.replace("-", ""))
        except ValueError:
            return False
        return self._at(bisect_left(range(len(self)), packed, key=self._at)) == packed

    def __iter__(self) -> Iterator[str]:
        """The keys, without hyphens."""
        return (self._at(place).hex() for place in range(len(self)))

    def __or__(self, other: KeySet) -> KeySet:
        """With the keys of a smaller set."""
        if not self.packed:
            return other
        mine, others = self._array, other._array
        places = np.searchsorted(mine, others)
        new = np.append(mine, b"")[places] != others
        return KeySet(np.insert(mine, places[new], others[new]).tobytes())

    @staticmethod
    def union(sets: Iterable[KeySet]) -> KeySet:
        arrays = [KeySet()._array, *(each._array for each in sets)]
        return KeySet(np.unique(np.concatenate(arrays)).tobytes())

    @property
    def _array(self) -> np.ndarray[Any, np.dtype[np.bytes_]]:
        return np.frombuffer(self.packed, f"S{KEY}")

    def _at(self, place: int) -> bytes:
        return self.packed[KEY * place : KEY * (place + 1)]


NO_KEYS = KeySet()


if TYPE_CHECKING:
    from dataclasses import replace as replace
else:

    def replace(record: V, /, **changes: Any) -> V:
        """Does what `dataclasses.replace` does, several times faster, for frozen dataclasses that
        have no slots. Every event makes several copies. Raises TypeError for an unknown field."""
        values = record.__dict__ | changes
        if len(values) > len(record.__dict__):
            unknown = ", ".join(changes.keys() - record.__dict__.keys())
            raise TypeError(f"{type(record).__name__} has no field {unknown}")
        copy = object.__new__(type(record))
        object.__setattr__(copy, "__dict__", values)
        return copy
