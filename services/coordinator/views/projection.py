"""What the projections of the ledger have in common: they take in one message after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from dpstream.shared.messages import Message

P = TypeVar("P", bound="Projection")
Changes = Mapping[type[Message], Callable[[Any, Any], None]]


class Projection:
    CHANGES: ClassVar[Changes] = {}
    """How a message changes the projection, by its class; messages of others do not."""

    @classmethod
    def of(cls: type[P], messages: Iterable[Message]) -> P:
        """From the messages of a ledger, in order."""
        projection = cls()
        for message in messages:
            projection.add(message)
        return projection

    def add(self, message: Message) -> None:
        """Take in the next message of the ledger."""
        change = self.CHANGES.get(type(message))
        if change is not None:
            change(self, message)
