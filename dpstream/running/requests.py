"""Requests of a person to a campaign that `dpstream run` has under way on this machine.

A request is a message in a file in the campaign's folder. Whoever may write to the store may leave
one. The run looks there at intervals, hands the message to its coordinator like one from a broker,
and removes the file. Requests are accepted only while a run is at work.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from dpstream.running.connection import is_folder, open_bus, publish
from dpstream.shared.codec import decode_leniently, encode
from dpstream.shared.errors import SpecError, write_errors
from dpstream.shared.files import read_plain, write_whole
from dpstream.shared.logs import logger
from dpstream.shared.messages import (
    CampaignPaused,
    Event,
    Message,
)
from dpstream.shared.values import campaign_uri

log = logger()
LARGEST = 64 * 1024
"""Bytes of a message, as on every bus."""


@dataclass
class RequestFolder:
    """The requests that wait for the run of a campaign."""

    folder: Path
    campaign: str
    pause: str | None = None
    """Why a person last asked for a pause."""
    _unreadable: set[Path] = field(default_factory=set)

    @staticmethod
    def of(root: Path, campaign: str) -> RequestFolder:
        return RequestFolder(root / campaign_uri(campaign, "requests"), campaign)

    def leave(self, message: Message) -> None:
        """Raises SpecError if the folder cannot be written."""
        with write_errors(f"--store: {self.folder}"):
            write_whole(self.folder / f"{message.id}.json", encode(message), mode=0o600)

    def withdraw(self, message: Message) -> None:
        (self.folder / f"{message.id}.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Drops what earlier runs have not taken in."""
        for file in self._files():
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def take(self) -> Iterator[Message]:
        """The requests that have come since; each is taken once."""
        for file in self._files():
            message = decode_leniently(self._taken(file))
            if not self._is_request(message):
                log.warning("a request cannot be read", file=str(file))
                continue
            if isinstance(message, CampaignPaused):
                self.pause = message.why
            yield message

    def _is_request(self, message: Message | None) -> TypeGuard[Event]:
        """Whether it is something that an operator may say to this campaign."""
        known = isinstance(message, Event) and "operator" in message.PUBLISHERS
        return known and message is not None and message.campaign == self.campaign

    def _taken(self, file: Path) -> bytes:
        """The content of a request, whose file is removed; empty if it cannot be read. A file that
        cannot be removed is not taken again."""
        body = None
        with suppress(OSError):
            body = read_plain(file, LARGEST)
        try:
            file.unlink(missing_ok=True)
        except OSError:
            self._unreadable.add(file)
            return b""
        return body or b""

    def _files(self) -> list[Path]:
        """The files, oldest first, whatever they are: the folder may contain anything."""
        found = dict[Path, int]()
        with suppress(OSError):
            for file in set(self.folder.glob("*.json")) - self._unreadable:
                with suppress(FileNotFoundError):  # taken meanwhile
                    found[file] = file.lstat().st_mtime_ns
        return sorted(found, key=lambda file: found[file])


@dataclass(frozen=True)
class Way:
    """What takes a request to the coordinator of a campaign. `unanswered`: says what becomes of one
    that no coordinator has taken in within a number of seconds."""

    send: Callable[[Message], None]
    unanswered: Callable[[Message, float], str]


@contextmanager
def way_to(
    root: str, broker: str | None, campaign: str, instead: str = "dpstream run SPEC"
) -> Iterator[Way]:
    """The way over the broker of a deployment or, for a store in a folder, to the run that is under
    way there. Raises SpecError, which names the command `instead`, if there is none."""
    if broker is None and is_folder(root):
        if not is_at_work(Path(root), campaign):
            raise SpecError(
                f"{campaign}: no dpstream run of it is active in {root}; type: {instead} --store "
                f"{root} (for a deployment: give --broker, or set DPSTREAM_BROKER)"
            )
        requests = RequestFolder.of(Path(root), campaign)

        def withdrawn(message: Message, waited: float) -> str:
            requests.withdraw(message)
            return (
                f"{campaign}: the run did not answer within {waited:g} s, so that the request was "
                f"withdrawn; if the run has ended, type: {instead} --store {root}"
            )

        yield Way(requests.leave, withdrawn)
        return
    with closing(open_bus(broker)) as bus:
        yield Way(lambda message: publish(bus, message), waits_for_coordinator)


def waits_for_coordinator(message: Message, waited: float) -> str:
    return (
        f"{message.campaign}: no coordinator answered within {waited:g} s; the request takes "
        "effect when one runs (python -m dpstream.services.coordinator)"
    )


def rests(root: str, broker: str | None, campaign: str) -> str:
    """That nothing goes on by itself, as no run is at work in a folder; empty otherwise, and where
    a broker may reach a coordinator."""
    if broker is not None or not is_folder(root) or is_at_work(Path(root), campaign):
        return ""
    return f"no dpstream run of it is active in {root}; next: dpstream run SPEC"


def is_at_work(root: Path, campaign: str) -> bool:
    """Whether a run holds the campaign's lock."""
    try:
        lock = (root / campaign_uri(campaign, "lock")).open("rb")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
