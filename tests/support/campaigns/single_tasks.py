"""A campaign up to one command of a kind, and what can become of that command."""

from __future__ import annotations

from typing import Any, TypeVar

from dpstream.services.coordinator.state import EndedTask, State
from dpstream.shared import messages as m
from tests.support.campaigns.archived import frames_of, tasks_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, ref, spec
from tests.support.campaigns.lossy_delivery import LossyDelivery, check_counters

Kind = TypeVar("Kind", bound=m.Command)
ATTEMPTS = 3


def campaign_with(
    kind: type[Kind], world: CampaignSimulator | None = None, **changes: Any
) -> tuple[LossyDelivery, Kind]:
    """A campaign that has run until a command of `kind` waits to be claimed; and that command."""
    campaign = LossyDelivery(world or CampaignSimulator(), spec(**changes))
    campaign.until(lambda state: any(isinstance(c, kind) for c in campaign.commands))
    command = next(c for c in campaign.commands if isinstance(c, kind))
    campaign.commands.remove(command)
    return campaign, command


def task(campaign: LossyDelivery, command: m.Command) -> EndedTask:
    return tasks_of(campaign.state)[command.task]


def claim(campaign: LossyDelivery, command: m.Command) -> None:
    campaign.deliver(m.TaskClaimed(**CampaignSimulator.envelope(command, "claim"), worker="w"))


def failed(command: m.Command, permanent: bool = False) -> m.TaskFailed:
    fields = CampaignSimulator.envelope(command, "failed")
    return m.TaskFailed(**fields, permanent=permanent, reason="it broke")


def lapsed(command: m.Command) -> m.LeaseLapsed:
    return m.LeaseLapsed(**CampaignSimulator.envelope(command, "lapsed"))


def released(command: m.Command, delay: float = 0.0) -> m.TaskReleased:
    fields = CampaignSimulator.envelope(command, "released")
    return m.TaskReleased(**fields, reason="spot reclaim", delay=delay)


def next_attempt(campaign: LossyDelivery, event: m.TaskEvent) -> Any:
    """The next attempt, issued in response to `event`."""
    command = next(d for d in campaign.deliver(event) if isinstance(d, m.Command))
    campaign.commands.remove(command)
    return command


def give_up(campaign: LossyDelivery, command: m.Command, permanent: bool) -> None:
    """All attempts of the task fail, or one for good."""
    for _ in range(ATTEMPTS - 1 if not permanent else 0):
        claim(campaign, command)
        command = next_attempt(campaign, failed(command))
    claim(campaign, command)
    campaign.deliver(failed(command, permanent))
    assert task(campaign, command).status == "abandoned"
    check_counters(campaign.state)


def statuses(state: State, command: m.Label) -> set[str]:
    return {frames_of(state)[frame.key].status for frame in command.frames}


def train_command(member: int) -> m.Train:
    return m.Train(
        id="t",
        campaign="world",
        time=0.0,
        task=f"train-{member}",
        title="",
        max_seconds=1.0,
        spec=ref("spec"),
        version=1,
        member=member,
        seed=1,
        dataset=ref("dataset"),
        steps=100,
    )
