"""Ends the attempts of workers that are gone: those whose lease ends without a heartbeat, and those
whose process has ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from dpstream.services.coordinator.ledger.salvage import stored_training
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.services.coordinator.untrusted import read_message
from dpstream.shared import messages as m
from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.ports import Bus, Store
from dpstream.shared.runtime.worker import claim_uri

CLAIMS = 64
"""Claims of a campaign that are read at once to learn which process has made them."""


@dataclass
class Leases:
    """`seconds`: length of a lease; `clock`: of the times in messages, seconds since the epoch;
    `timer`: monotonic, s."""

    bus: Bus
    store: Store
    seconds: float
    clock: Callable[[], float]
    timer: Callable[[], float]
    _looked: float | None = None
    """When the coordinator last looked, by `timer`."""

    def extend_after_absence(self, campaigns: Iterable[OpenCampaign], now: float) -> None:
        """Leases do not run while the coordinator cannot receive heartbeats, for example during an
        outage or while a laptop sleeps."""
        absence = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        if absence > self.seconds / 4:
            for open_campaign in campaigns:
                leases = open_campaign.leases.items()
                open_campaign.leases = {task: end + absence for task, end in leases}

    def lapsed(
        self, open_campaign: OpenCampaign, now: float, ended: Collection[str]
    ) -> list[m.Message]:
        """The ends of attempts whose lease has ended at `now`, monotonic clock, or whose process is
        among `ended`; of a training that was complete, its result. Raises StoreError, BusError."""
        late = open_campaign.overdue(now)
        if ended:
            self._recall_claims(open_campaign, open_campaign.of_unknown_process(CLAIMS))
        lost = {*late, *open_campaign.orphaned(ended)}
        if lost and self.bus.depth(COORDINATOR):
            # Heartbeats, releases and results may still be in the queue: no lease ends while the
            # coordinator lags behind.
            open_campaign.leases.update(dict.fromkeys(late, now + self.seconds))
            return []
        self._recall_claims(
            open_campaign, [task for task in lost if task not in open_campaign.kept]
        )
        stored = self._stored_trainings(open_campaign, lost)  # read before any lease is ended
        lapses = {task: open_campaign.lapse(task, now, self.clock()) for task in sorted(lost)}
        return [stored.get(task) or lapsed for task, lapsed in lapses.items()]

    def _stored_trainings(
        self, open_campaign: OpenCampaign, tasks: Iterable[str]
    ) -> dict[str, m.MemberTrained | None]:
        """Results whose events were lost."""
        commands = [open_campaign.state.tasks[task].command for task in tasks]
        return {
            command.task: stored_training(self.store, command)
            for command in commands
            if isinstance(command, m.Train)
        }

    def _recall_claims(self, open_campaign: OpenCampaign, tasks: Iterable[str]) -> None:
        """Reads the claims of tasks that were running before this coordinator started: a process
        that has ended sends no heartbeat."""
        for task in tasks:
            command = open_campaign.state.tasks[task].command
            key = claim_uri(command.campaign, command.task, command.attempt)
            claim = read_message(self.store, key)
            claimed = claim if isinstance(claim, m.TaskClaimed) else None
            age = 0.0 if claimed is None else max(0.0, self.clock() - claimed.time)
            open_campaign.recall(task, claimed, made=self.timer() - age)
