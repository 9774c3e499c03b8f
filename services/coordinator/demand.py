"""What the campaigns need of workers: their tasks by queue, which a fleet is planned from."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain

from dpstream.services.coordinator.fleet.plan import Demand
from dpstream.services.coordinator.open_campaign import OpenCampaign


def demand_of(campaigns: Collection[OpenCampaign], now: float) -> dict[str, Demand]:
    """The tasks of active campaigns by queue, at `now` on the coordinator's monotonic clock, s.
    Those of paused and ended ones need no worker, except one that a campaign waits for because no
    worker serves its queue."""
    active = [each for each in campaigns if each.active]
    waits = [each for each in campaigns if each.state.missing]
    queues = {*chain(*(each.task_queue.waiting + each.task_queue.busy for each in active))}
    queues |= {*chain(*(each.state.missing for each in waits))}
    return {queue: _of_queue(queue, now, active, waits) for queue in queues}


def _of_queue(
    queue: str, now: float, active: Collection[OpenCampaign], waits: Collection[OpenCampaign]
) -> Demand:
    """`waits`: campaigns that are paused until a worker serves some queues."""
    missing = [each for each in waits if queue in each.state.missing]
    queues = [each.task_queue for each in active]
    paused = sum(each.task_queue.waiting[queue] > 0 for each in missing)
    declined = (each.task_queue for each in active if each.is_declined(queue, now))
    times = [each.usual_seconds[queue] for each in active if queue in each.usual_seconds]
    return Demand(
        waiting=sum(each.waiting[queue] for each in queues) + paused,
        declined=sum(each.waiting[queue] for each in declined) + paused,
        running=sum(each.busy[queue] for each in queues),
        seconds=sum(times) / len(times) if times else None,
    )
