"""What the reconciler remembers of each pool from earlier turns."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from dpstream.services.coordinator.fleet.plan import PoolStanding, PoolVerdict
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.services.coordinator.fleet.processes import Processes
from dpstream.services.coordinator.fleet.spending import Spent
from dpstream.services.coordinator.fleet.status import PoolStatus
from dpstream.shared.ports import Launch

FAILURES = 3
"""Failed workers or launches in a row after which a pool pauses."""
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0
CEILING_SECONDS = 600.0
"""How long a limit of the fleet engine is believed."""
UNSURE_SECONDS = 300.0
"""How long a launch whose reply was lost may still appear; Slurm lists an ended one as long."""
LAUNCHES_PER_MINUTE = 20
"""Of one pool."""
STARTS = 20
"""Workers whose start time is remembered."""
GOOD = frozenset({"0", "75"})
"""Exit statuses of workers that did what they should."""
DECLINED = "69"
"""Exit status of workers that have declined every task."""
TAKEN = frozenset({"SIGTERM", "143", "signal 15"}) | {
    *("CANCELLED", "PREEMPTED", "NODE_FAIL", "TIMEOUT", "DEADLINE"),  # Slurm
    "HostTerminated",  # AWS Batch
    "UNKNOWN",  # a batch system without a record
    *("DisruptionTarget", "Evicted", "NodeLost", "NodeShutdown"),  # Kubernetes
    *("Shutdown", "Terminated", "DeadlineExceeded"),
}
"""Endings that are not the worker's fault."""
KILLED = frozenset({"SIGKILL", "137", "signal 9"})
"""Endings of workers whose machine was reclaimed without notice, or that used too much memory."""


@dataclass
class PoolMemory:
    """One pool: its launches, and what went wrong with them."""

    launches: tuple[Launch, ...] = ()
    unknown_since: float | None = None
    silence: str = ""
    """Why the engine could not be asked since then."""
    spot: bool = False
    """Whether its machines may be reclaimed."""
    list_lag: float = 0.0
    """Seconds for which its engine's list may lack what it has accepted."""
    failures: int = 0
    """Of workers in a row."""
    losses: int = 0
    """Of launches in a row."""
    last_failure: str = ""
    pause: float = 0.0
    paused_until: float = 0.0
    declines: int = 0
    """Workers in a row that have declined every task."""
    _declined_at: float = 0.0
    _declined_pause: float = 0.0
    _declined_until: float = 0.0
    """Until when the pool starts no workers for campaigns whose tasks are declined."""
    _closed: bool = False
    """Whether a pause takes back what waits, because workers have failed."""
    ceiling: int | None = None
    most: int | None = None
    limited_until: float = 0.0
    unsure: str | None = None
    """Name of a launch whose reply was lost, until it is listed: the next one has the same name."""
    _unsure_at: float = 0.0
    _unlisted: dict[str, Launch] = field(default_factory=dict)
    """Launches that the engine has accepted, until it lists them or `list_lag` is over."""
    launched: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    _counted: dict[str, Counter[str]] | None = None
    """Ended workers of each listed launch that are counted already; None before the first list,
    whose endings belong to an earlier coordinator."""
    _times: deque[float] = field(default_factory=deque)
    _running_since: dict[str, float] = field(default_factory=dict)
    """When each running process was first listed, seconds since the epoch."""
    _inherited: frozenset[str] | None = None
    """Processes of the first list, whose start an earlier coordinator saw."""
    _started: frozenset[str] = frozenset()
    """Running processes that are up."""
    _start_times: deque[float] = field(default_factory=lambda: deque(maxlen=STARTS))
    """Of the last workers, seconds."""
    _silent: frozenset[str] = frozenset()
    """Running processes that have failed to start."""
    _coming: int = 0
    """Running processes that have sent nothing yet."""
    _stuck: int = 0
    """Workers that the engine could not start, as of the last list."""

    def update(self, launches: Sequence[Launch], now: float) -> None:
        """Takes in a new list of the pool's launches."""
        self.unknown_since = None
        self._forget_listed({launch.name for launch in launches}, now)
        self.launches = (
            *(each for each in launches if each.alive),
            *self._unlisted.values(),
        )
        before = self._counted
        self._counted = {launch.name: Counter(launch.ended) for launch in launches}
        if self.unsure in self._counted:
            self.unsure, self.losses = None, 0
        elif now - self._unsure_at > UNSURE_SECONDS:
            self.unsure = None
        new: Counter[str] = Counter()
        for name, ended in self._counted.items() if before is not None else ():
            new += ended - (before or {}).get(name, Counter())
        self.ended += new
        self._judge(new, now)
        self._judge_stuck(now)

    def _forget_listed(self, listed: Collection[str], now: float) -> None:
        self._unlisted = {
            name: each
            for name, each in self._unlisted.items()
            if name not in listed and now - each.since < self.list_lag
        }

    def judge_starts(self, processes: Processes, pool: PoolSettings, now: float) -> None:
        """Counts processes that have run for `start_limit` and sent nothing as failures. The limit
        is extended by `idle_exit`: if the message of an idle worker was lost, it leaves by then.
        While workers of an earlier release are at work, none is judged: they do not name their
        process."""
        running = frozenset().union(*(launch.up for launch in self.launches))
        self._running_since = {name: self._running_since.get(name, now) for name in running}
        self._measure_starts(running, processes)
        if pool.min and self._inherited:
            running -= self._inherited  # a warm worker sends nothing while it is idle
        limit, nameless = pool.start_limit + pool.idle_exit, processes.nameless_at
        if nameless is not None and now - nameless < limit:
            self._silent, self._coming = frozenset(), 0
            return
        known, began = self._silent, self._running_since
        coming = running - processes.up.keys()
        self._silent = frozenset(name for name in coming if now - began[name] > limit)
        self._coming = len(coming - (self._inherited or frozenset()))
        if new := self._silent - known:
            self.fail(f"not up within {pool.start_limit:g} s", len(new), now)

    def _measure_starts(self, running: frozenset[str], processes: Processes) -> None:
        if self._inherited is None:
            self._inherited = running
        up = running & processes.up.keys()
        for name in up - self._started - self._inherited:
            self._start_times.append(max(0.0, processes.up[name] - self._running_since[name]))
        self._started = up

    def not_listed(self, why: str, now: float) -> None:
        """The engine could not be asked."""
        self.unknown_since, self.silence = self.unknown_since or now, why

    def _judge(self, new: Counter[str], now: float) -> None:
        if new[DECLINED]:
            self._decline(new[DECLINED], now)
        blameless = GOOD | TAKEN | {DECLINED} | (KILLED if self.spot else frozenset())
        failed = {how: count for how, count in new.items() if how not in blameless}
        if new.keys() & GOOD:
            self.failures, self.pause = 0, 0.0
        elif failed:
            self.fail(f"ended with {', '.join(sorted(failed))}", sum(failed.values()), now)

    def _decline(self, count: int, now: float) -> None:
        """Counts workers that have declined every task: after `FAILURES` of them, the pool starts
        none for the campaigns that they declined, ever longer. Others may still need it."""
        if now - max(self._declined_at, self._declined_until) > LONGEST_PAUSE:
            self.declines, self._declined_pause = 0, 0.0
        self._declined_at = now
        self.declines += count
        if self.declines >= FAILURES and now >= self._declined_until:
            self._declined_pause = min(max(2 * self._declined_pause, FIRST_PAUSE), LONGEST_PAUSE)
            self._declined_until = now + self._declined_pause

    def _judge_stuck(self, now: float) -> None:
        """Workers that cannot start are failures: once, and again after each pause."""
        stuck = [launch for launch in self.launches if launch.stuck]
        count = sum(launch.stuck for launch in stuck)
        if count > self._stuck or (count and now >= self.paused_until):
            self.fail(stuck[0].reason, max(1, count - self._stuck), now)
        self._stuck = count

    def fail(self, how: str, count: int, now: float) -> None:
        """Counts failures; pauses the pool after `FAILURES`, ever longer."""
        self._closed = True
        self.failures += count
        self._note(how, self.failures, now)

    def lose(self, name: str, why: str, now: float) -> None:
        """A launch failed; it may exist nevertheless. What waits is kept: it has not failed."""
        self.unsure, self._unsure_at = name, now
        self._closed = False
        self.losses += 1
        self._note(why, self.losses, now)

    def _note(self, how: str, in_a_row: int, now: float) -> None:
        self.last_failure = how
        if in_a_row >= FAILURES and now >= self.paused_until:
            self.pause = min(max(2 * self.pause, FIRST_PAUSE), LONGEST_PAUSE)
            self.paused_until = now + self.pause

    def limit(self, count: int, now: float) -> None:
        """A quota forbade a launch of `count`: the next is half as large; if one worker more is too
        many, those alive are the limit."""
        self.limited_until = now + CEILING_SECONDS
        self.most = max(1, count // 2)
        self.ceiling = sum(launch.alive for launch in self.launches) if count == 1 else None

    def may_launch(self, now: float) -> bool:
        """Whether the pool has launched less than `LAUNCHES_PER_MINUTE` times in a minute."""
        while self._times and now - self._times[0] > 60:
            self._times.popleft()
        return len(self._times) < LAUNCHES_PER_MINUTE

    def count_launch(self, name: str, pool: str, count: int, now: float) -> None:
        """The engine has accepted a launch."""
        self._times.append(now)
        self.launched += count
        self._unlisted[name] = Launch(name, pool, waiting=count, since=now, listed=False)
        self.unsure, self.losses = None, 0
        if not self.failures:
            self.pause = 0.0

    def standing(self, now: float, used_up: bool) -> PoolStanding:
        """`used_up`: whether the budget of the pool, or of its deployment, is."""
        limited = now < self.limited_until
        paused = self._pause_reason(now)
        return PoolStanding(
            launches=self.launches,
            unknown_since=self.unknown_since,
            silence=self.silence,
            blocked="the budget is used up" if used_up else paused,
            declining=self._declining(now),
            closed=used_up or (self._closed and bool(paused)),
            silent=len(self._silent),
            coming=self._coming,
            start_time=median(self._start_times) if self._start_times else 0.0,
            ceiling=self.ceiling if limited else None,
            most=self.most if limited else None,
        )

    def status(
        self,
        verdict: PoolVerdict,
        slots: int,
        processes: Processes,
        programs: Mapping[str, str],
        devices: tuple[str, ...],
        spent: Spent,
        budget_used: float,
        now: float,
    ) -> PoolStatus:
        """`slots`: of each worker of the pool."""
        running = sum(launch.running for launch in self.launches)
        busy_slots = min(verdict.busy_slots, running * slots)
        named = frozenset().union(*(launch.up for launch in self.launches)) & processes.occupied
        # Workers of an earlier release do not name their process: they are fewer, fully used ones.
        busy = min(running, max(len(named), math.ceil(busy_slots / slots)))
        return PoolStatus(
            wanted=verdict.wanted,
            waiting=sum(launch.waiting for launch in self.launches),
            starting=sum(launch.starting for launch in self.launches),
            busy=busy,
            idle=running - busy,
            idle_slots=running * slots - busy_slots,
            launched=self.launched,
            ended=dict(self.ended),
            paused=bool(self._pause_reason(now)),
            reason=verdict.reason,
            stale_since=self.unknown_since,
            programs=programs,
            devices=devices,
            budget_used=budget_used,
            worker_hours=spent.hours,
            idle_hours=spent.idle_hours,
            cost=spent.cost,
        )

    def _pause_reason(self, now: float) -> str:
        if now >= self.paused_until:
            return ""
        count, left = max(self.failures, self.losses), self.paused_until - now
        return f"{count} failures in a row ({self.last_failure}); paused for {left:.0f} s"

    def _declining(self, now: float) -> str:
        left = self._declined_until - now
        if left <= 0:
            return ""
        return f"{self.declines} workers in a row declined every task; none for it for {left:.0f} s"
