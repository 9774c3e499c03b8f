"""What the workers of a deployment say that they run. The coordinator keeps it in the store, for
those who submit campaigns from machines without these programs."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.messages import Label, ProcessStarted
from dpstream.shared.ports import Store
from dpstream.shared.values import PROGRAMS

MOST_QUEUES, MOST_GROUPS, MOST_PROGRAMS, LONGEST = 50, 100, 50, 200
"""Limits of what is kept: queues, groups of workers and programs of a queue, characters of a name
or version."""
MOST_BYTES = 16 * 1024 * 1024
"""Size beyond which the object is none of dpstream's."""
REMEMBERED = 86_400.0
"""Seconds, before the newest statement on a program, since which the others still count: pods have
a new host name at each start."""
SETTLED = 3600.0
"""Seconds after which the same statement is written again, with its new time."""
JAX_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
DISTRIBUTIONS = ("deepmd-kit", "tensorflow", "tensorflow-cpu", "torch", "jax", *JAX_PLUGINS)
"""What a trainer states the versions of."""
BACKENDS = frozenset({"tensorflow", "pytorch", "jax"})


def gpu_backends(programs: Mapping[str, str]) -> frozenset[str]:
    """The backends of DeePMD-kit that are built for GPUs, as far as the versions of a trainer's
    `DISTRIBUTIONS` tell; all where it states none. Whether one finds its GPU is known to its engine
    alone."""
    if not programs:
        return BACKENDS
    built = {
        "tensorflow": "tensorflow" in programs and "tensorflow-cpu" not in programs,
        "pytorch": not programs.get("torch", "+cpu").endswith("+cpu"),
        "jax": any(plugin in programs for plugin in JAX_PLUGINS),
    }
    return frozenset(name for name in BACKENDS if built[name])


class StatedPrograms(BaseModel):
    """What one group of workers, those of a pool or of a host, runs: versions by program, empty
    where they are not known. `time`: of the last start, seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    time: float
    programs: dict[str, str]


class Programs(BaseModel):
    """By label queue and group of workers."""

    model_config = ConfigDict(frozen=True)

    queues: dict[str, dict[str, StatedPrograms]] = {}

    @staticmethod
    def read(store: Store) -> Programs:
        """Nothing if there is no such object, or none that can be read."""
        try:
            return Programs.model_validate_json(store.get(PROGRAMS, MOST_BYTES))
        except (NotFound, DigestMismatch, ValidationError):
            return Programs()

    def started(self, event: ProcessStarted, now: float) -> Programs:
        """With what a worker states that starts `now`; the same object if that is nothing new."""
        stated = StatedPrograms(time=now, programs=_within_limits(event.programs))
        group = f"pool {event.pool}" if event.pool else event.host[:LONGEST]
        queues = dict(self.queues)
        for queue in filter(_is_of_labels, event.queues[:MOST_QUEUES]):
            known = self.queues.get(queue, {})
            before = known.get(group)
            if before and before.programs == stated.programs and now - before.time < SETTLED:
                continue
            newest = sorted({**known, group: stated}.items(), key=lambda each: -each[1].time)
            queues[queue] = dict(newest[:MOST_GROUPS])
        return self if queues == self.queues else Programs(queues=_newest(queues))

    def versions(self, queue: str, program: str) -> dict[str, str]:
        """Versions of a program by the groups of workers of a queue that run it."""
        stated = self._statements(queue, program)
        return {group: each.programs[program] for group, each in stated.items()}

    def since(self, queue: str, program: str) -> float:
        """When the oldest of these statements was made, seconds since the epoch."""
        return min(each.time for each in self._statements(queue, program).values())

    def words(self, queue: str) -> str:
        """What workers of a queue have stated, for people."""
        names = sorted({name for each in self.queues[queue].values() for name in each.programs})
        return "; ".join(
            f"{name} {version} ({group})".replace("  ", " ")
            for name in names
            for group, version in self.versions(queue, name).items()
        )

    def _statements(self, queue: str, program: str) -> dict[str, StatedPrograms]:
        groups = self.queues.get(queue, {})
        known = [each.time for each in groups.values() if each.programs.get(program)]
        newest = max(known, default=0.0)
        return {
            group: each
            for group, each in sorted(groups.items())
            if program in each.programs and newest - each.time <= REMEMBERED
        }


def _newest(queues: dict[str, dict[str, StatedPrograms]]) -> dict[str, dict[str, StatedPrograms]]:
    """The queues with the newest statements: a worker may name any queue."""

    def age(queue: str) -> float:
        return -max(each.time for each in queues[queue].values())

    return {queue: queues[queue] for queue in sorted(queues, key=age)[:MOST_QUEUES]}


def _within_limits(programs: Mapping[str, str]) -> dict[str, str]:
    return {name[:LONGEST]: programs[name][:LONGEST] for name in sorted(programs)[:MOST_PROGRAMS]}


def _is_of_labels(queue: str) -> bool:
    return queue.startswith(Label.QUEUE.format("")) and len(queue) <= LONGEST
