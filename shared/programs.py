"""What the workers of a deployment say that they run. The coordinator keeps it in the store, for
those who submit campaigns from machines without these programs."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.messages import Label, ProcessStarted
from dpstream.shared.ports import Store
from dpstream.shared.values import PROGRAMS

MOST_GROUPS, MOST_PROGRAMS, LONGEST = 100, 50, 200
"""Limits of what is kept: groups of workers and programs of a queue, characters of a version."""
REMEMBERED = 30 * 86_400.0
"""Seconds, before the newest start of a worker, since which the others still count."""
SETTLED = 3600.0
"""Seconds after which the same statement is written again, with its new time."""


class Stated(BaseModel):
    """What one group of workers, those of a pool or of a host, runs: versions by program, empty
    where they are not known. `time`: of the last start, seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    time: float
    programs: dict[str, str]


class Programs(BaseModel):
    """By label queue and group of workers."""

    model_config = ConfigDict(frozen=True)

    queues: dict[str, dict[str, Stated]] = {}

    @staticmethod
    def read(store: Store) -> Programs:
        """Nothing if there is no such object, or none that can be read."""
        try:
            return Programs.model_validate_json(store.get(PROGRAMS))
        except (NotFound, DigestMismatch, ValidationError):
            return Programs()

    def started(self, event: ProcessStarted, now: float) -> Programs:
        """With what a worker states that starts `now`; the same object if that is nothing new."""
        stated = Stated(time=now, programs=_within_limits(event.programs))
        group = f"pool {event.pool}" if event.pool else event.host[:LONGEST]
        queues = dict(self.queues)
        for queue in filter(_is_of_labels, event.queues):
            known = self.queues.get(queue, {})
            before = known.get(group)
            if before and before.programs == stated.programs and now - before.time < SETTLED:
                continue
            newest = sorted({**known, group: stated}.items(), key=lambda each: -each[1].time)
            queues[queue] = dict(newest[:MOST_GROUPS])
        return self if queues == self.queues else Programs(queues=queues)

    def versions(self, queue: str, program: str) -> dict[str, str]:
        """Versions of a program by the groups of workers of a queue that run it."""
        groups = self.queues.get(queue, {})
        newest = max((each.time for each in groups.values()), default=0.0)
        return {
            group: each.programs[program]
            for group, each in sorted(groups.items())
            if program in each.programs and newest - each.time <= REMEMBERED
        }


def _within_limits(programs: Mapping[str, str]) -> dict[str, str]:
    return {name[:LONGEST]: programs[name][:LONGEST] for name in sorted(programs)[:MOST_PROGRAMS]}


def _is_of_labels(queue: str) -> bool:
    return queue.startswith(Label.QUEUE.format(""))
