"""Given frames: the committee judges them as they are, without dynamics.

A trajectory is the batch of its starting structure, from that structure on, without frames that are
known already.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property

import numpy as np

from dpstream.services.explorer.engines.base import (
    TrajectoryRequest,
    TrajectorySegment,
    judged,
)
from dpstream.shared.atoms.frames import Batch, Floats, frame_key


class GivenFrames:
    """The engine `frames`. `made`: frames judged so far."""

    def __init__(self, request: TrajectoryRequest) -> None:
        self.request = request
        self.made = 0

    def start(self) -> None:
        """Nothing to prepare."""

    def resume(self, state: bytes) -> None:
        self.made = int(state)

    def advance(self, checks: int, streak: int) -> TrajectorySegment:
        batch, times = self.unknown
        rows = list(range(self.made, min(self.made + checks, len(batch))))
        if not rows:
            return TrajectorySegment(0, streak, None, None, complete=True)
        segment = judged(self.request, batch.take(rows), times[rows], streak)
        self.made += segment.made
        return replace(segment, complete=segment.stopped is None and self.made == len(batch))

    def switch_committee(self) -> None:
        """Nothing to do: the next frames are judged by the new committee."""

    def save(self) -> bytes:
        return str(self.made).encode()

    @cached_property
    def unknown(self) -> tuple[Batch, Floats]:
        """The frames to judge, with times (ps) that represent their positions in the batch."""
        command, md = self.request.command, self.request.md
        batch = Batch.loads(self.request.context.fetch(command.structure.batch))
        first = command.structure.index
        rows = range(first, min(first + md.steps // md.every, len(batch)))
        left_out = set() if command.known is None else self._known()
        kept = [row for row in rows if frame_key(batch[row]) not in left_out]
        times = (np.array(kept, dtype=np.float64) - first + 1) * md.every * md.timestep
        return batch.take(kept), times

    def _known(self) -> set[str]:
        assert self.request.command.known is not None
        return set(json.loads(self.request.context.fetch(self.request.command.known)))
