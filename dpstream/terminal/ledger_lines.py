"""Formats a campaign's ledger for `dpstream logs`: one line per event and decision, and the traces
of failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from dpstream.shared import messages as m
from dpstream.shared.codec import encode, kind_of

INDENT = " " * 8


@dataclass
class LedgerLines:
    """Formats messages. `task`: restricts the output to tasks whose id starts with it; `as_json`:
    the messages themselves."""

    task: str = ""
    as_json: bool = False
    _titles: dict[str, str] = field(default_factory=dict)

    def of(self, messages: Iterable[m.Message]) -> Iterator[str]:
        for message in messages:
            if isinstance(message, m.Command):
                self._titles[message.task] = message.title
            task = getattr(message, "task", "")
            if isinstance(message, m.ManifestFrozen) or not task.startswith(self.task):
                continue
            if self.as_json:
                yield encode(message).decode()
                continue
            yield self._line(message, task)
            trace = getattr(message, "trace", "")
            yield from (INDENT + plain(line) for line in str(trace).splitlines())

    def _line(self, message: m.Message, task: str) -> str:
        time = datetime.fromtimestamp(message.time).astimezone().isoformat(" ", "seconds")
        words = [time, f"{kind_of(message):20}"]
        if task:
            words.append(f"{task[:8]}/{getattr(message, 'attempt', '-')}")
            words.append(self._titles.get(task, ""))
        detail = message.describe()
        separator = ": " if task else " "
        return plain(" ".join(words) + (separator + detail if detail else ""))


def plain(text: str) -> str:
    """Replace control characters, which engine output may contain."""
    return "".join(c if c.isprintable() else " " for c in text).rstrip()
