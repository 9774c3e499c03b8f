"""What a batch system does in its own way: submit, list, cancel, and announce that it will stop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dpstream.services.coordinator.fleet.pools import PoolSettings

Place = Literal["waiting", "starting", "running", "ended"]
CANCELLED = "CANCELLED"
"""Ending of a process that was taken back before it started."""
UNKNOWN = "UNKNOWN"
"""Ending of a process of which the batch system keeps no record."""


@dataclass(frozen=True)
class ListedProcess:
    """One process of a launch.

    id: what commands take; array: the job that it is a part of; number: its last part of
    `DPSTREAM_PROCESS`; job_name: of its launch; ending: exit status, signal, or the batch system's
    word, empty if it has not ended or the list does not say; reason: why it waits.
    """

    id: str
    array: str
    number: str
    job_name: str
    place: Place
    ending: str = ""
    reason: str = ""


class Run(Protocol):
    """Runs a command of the batch system."""

    def __call__(self, command: Sequence[str], *, accept: Sequence[int] = (0,)) -> str:
        """Its standard output. Raises FleetError, with the command's words, if its exit status is
        not among `accept`."""


def options_of(given: Mapping[str, str | Sequence[str] | None]) -> list[str]:
    """The words of a command's options; those without a value are left out."""
    words = list[str]()
    for key, value in given.items():
        if value:
            words += [key, *([value] if isinstance(value, str) else value)]
    return words


def no_record(run: Run, processes: Sequence[ListedProcess]) -> Mapping[str, str]:
    """For batch systems that list ended processes, or keep no record of them."""
    return {}


@dataclass(frozen=True)
class Scheduler:
    submit: Callable[[str, PoolSettings, int], list[str]]
    """The command that submits as many workers as one job of that name."""
    check: Callable[[PoolSettings, list[str]], list[str]]
    """The command that asks whether a worker would be accepted, from the one that submits it."""
    listed: Callable[[Run, str], Iterable[ListedProcess]]
    """The processes of all jobs whose names have that prefix."""
    cancel: tuple[str, ...]
    """The command that takes back processes that wait, without their ids. One that has started
    meanwhile is stopped."""
    stop: Callable[[str, Sequence[str]], list[str]]
    """The command that announces the stop to started processes, from the name of their job and
    their ids."""
    named: str
    """Shell line that exports `DPSTREAM_PROCESS`."""
    limits: re.Pattern[str]
    """Words of a refusal that another attempt at once would not change."""
    over: re.Pattern[str]
    """Words of a refusal to cancel or stop what has ended meanwhile."""
    announced_by: tuple[str, ...] = ()
    """Signals that announce the stop, besides SIGTERM."""
    script_is_argument: bool = False
    """Whether the script follows the command, and not on its standard input."""
    endings: Callable[[Run, Sequence[ListedProcess]], Mapping[str, str]] = no_record
    """How processes ended that are not listed any more, or without their ending, by their ids."""
