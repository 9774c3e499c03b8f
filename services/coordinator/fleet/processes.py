"""What is known of the processes of workers: which are up, and which have ended.

That a process is up follows from its own messages, which may be lost; that it has ended, from its
fleet engine alone. The coordinator's loop and the reconciler's thread share one instance. Names are
those of `DPSTREAM_PROCESS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dpstream.shared import messages as m
from dpstream.shared.programs import gpu_backends

REMEMBERED = 3600.0
"""Seconds for which an ended process is remembered: a claim may arrive after the news of the end,
and fleet engines list ended processes for minutes only."""
LOOK_EVERY = 60.0
"""Seconds after which ended processes are looked through for those to forget."""
ABOUT_PROCESSES = (m.ProcessStarted, m.TaskClaimed, m.TaskHeartbeat)
"""Messages that name the process they come from."""


@dataclass
class Processes:
    ended: frozenset[str] = frozenset()
    """Replaced, never changed, so that any thread may read it."""
    occupied: frozenset[str] = frozenset()
    """Processes with at least one running task; replaced, never changed, by the loop."""
    up: dict[str, float] = field(default_factory=dict)
    """Processes that have sent a message, and when the first arrived, seconds since the epoch."""
    gpu_trainers: dict[str, str] = field(default_factory=dict)
    """Why trainings of a backend may expect a GPU: a trainer that has one has started, or a pool of
    the fleet file starts such trainers on demand. Without backends for which neither is known."""
    nameless_at: float | None = None
    """When a worker of an earlier release, which does not name its process, last sent a message,
    seconds since the epoch."""
    _started: dict[str, m.ProcessStarted] = field(default_factory=dict)
    _ended_at: dict[str, float] = field(default_factory=dict)
    """When each was last listed, seconds since the epoch."""
    _looked_at: float = 0.0

    def take_in(self, message: m.Message | None, now: float) -> None:
        """Takes in a message from the bus; called by the loop."""
        if not isinstance(message, ABOUT_PROCESSES):
            return
        if isinstance(message, m.TrainerStarted):
            self._look_for_gpu(message)
        if "process" not in message.model_fields_set:
            self.nameless_at = now
        elif message.process is not None:
            self.up.setdefault(message.process, now)
            if isinstance(message, m.ProcessStarted):
                self._started[message.process] = message
            if message.process in self.ended:  # looked up last: it may have ended just now
                self._forget(message.process)

    def _forget(self, name: str) -> None:
        self.up.pop(name, None)
        self._started.pop(name, None)

    def _look_for_gpu(self, started: m.TrainerStarted) -> None:
        if started.devices:
            why = f"{started.worker} trains on {started.devices[0]}"
            self.gpu_trainers |= dict.fromkeys(gpu_backends(started.programs), why)

    def end(self, names: Iterable[str], now: float, up: Iterable[str] = ()) -> None:
        """Takes in processes that a fleet engine lists as ended, and those that it lists as `up`,
        perhaps after a list without them; called by the reconciler. Most lists repeat the one
        before, so that only what has changed is looked at one by one."""
        running = set(up)
        gone = set(names) - running
        new, returned = gone - self._ended_at.keys(), running & self._ended_at.keys()
        self._ended_at |= dict.fromkeys(gone, now)
        for name in (*returned, *self._too_old(now)):
            del self._ended_at[name]
        if self.ended != self._ended_at.keys():
            self.ended = frozenset(self._ended_at)
        for name in new:  # after `ended`, so that a message from now on does not bring it back
            self._forget(name)

    def _too_old(self, now: float) -> list[str]:
        """Ended processes that need not be remembered any more; none most of the time."""
        if now - self._looked_at < LOOK_EVERY:
            return []
        self._looked_at = now
        return [name for name, at in self._ended_at.items() if now - at > REMEMBERED]

    def programs(self, pool: str) -> dict[str, str]:
        """Codes and engines of a pool's workers, with their versions."""
        found: dict[str, str] = {}
        for started in list(self._started.values()):
            if started.pool == pool:
                found |= started.programs
        return found

    def devices(self, pool: str) -> tuple[str, ...]:
        """Models of the GPUs of a pool's workers."""
        started = [each for each in list(self._started.values()) if each.pool == pool]
        return tuple(sorted({name for each in started for name in each.devices}))
