"""A message of the coordinator's queue, without a bus."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """A delivery (`ports.Delivery`)."""

    body: bytes
    topic: str | None = None
    user: str | None = None
    secret: str | None = field(default=None, repr=False)
    redelivered: bool = False
    dropped: bool = False

    def ack(self) -> None: ...

    def reject(self) -> None: ...
