"""A campaign's ledger as lines to read: what was heard and what was decided, failures with their
traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared import messages as m
from shared.codec import kind_of
from shared.values import Counts

INDENT = " " * 8


@dataclass
class Lines:
    """`task`: only of the tasks whose id begins so."""

    task: str = ""
    _titles: dict[str, str] = field(default_factory=dict)

    def of(self, messages: Iterable[m.Message]) -> Iterator[str]:
        for message in messages:
            if isinstance(message, m.Command):
                self._titles[message.task] = message.title
            task = getattr(message, "task", "")
            if isinstance(message, m.ManifestFrozen) or not task.startswith(self.task):
                continue
            yield self._line(message, task)
            yield from (INDENT + plain(line) for line in _trace(message).splitlines())

    def _line(self, message: m.Message, task: str) -> str:
        time = datetime.fromtimestamp(message.time).astimezone().isoformat(" ", "seconds")
        words = [time, f"{kind_of(message):20}"]
        if task:
            words.append(f"{task[:8]}/{getattr(message, 'attempt', '-')}")
            words.append(self._titles.get(task, ""))
        detail = _detail(message)
        return plain(" ".join(words) + (f": {detail}" if detail else ""))


def plain(text: str) -> str:
    """Without what would steer a terminal: engines print whatever they like."""
    return "".join(c if c.isprintable() else " " for c in text).rstrip()


def _trace(message: m.Message) -> str:
    return str(getattr(message, "trace", ""))


def _detail(message: Any) -> str:
    tell = DETAILS.get(type(message))
    if tell is not None:
        return tell(message)
    return str(getattr(message, "reason", "") or getattr(message, "why", ""))


def _shares(counts: Counts, dropped: int) -> str:
    words = f"{counts.accurate} accurate, {counts.candidate} candidate, {counts.failed} failed"
    return words + (f", {dropped} never made" if dropped else "")


def _labels(event: m.LabelsDone) -> str:
    rejected = "".join(f"; {r.key[:8]} rejected by {r.rule}: {r.detail}" for r in event.rejected)
    return f"{len(event.accepted)} accepted in {event.seconds:.3g} s{rejected}"


def _audit(event: m.AuditDone) -> str:
    return (
        f"force RMSE {event.force:.3g}, up to {event.force_upper:.3g} eV/Å, "
        f"on {event.frames} frames of {event.trajectories} trajectories"
    )


def _measured(event: m.Measured) -> str:
    numbers = (f"{p.name} {_number(p.model)}, {_number(p.recipe)}" for p in event.properties)
    return f"by committee {event.version} and by the recipe: {'; '.join(numbers)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


DETAILS: Mapping[type[m.Message], Callable[[Any], str]] = {
    m.CampaignSubmitted: lambda e: f"{len(e.frames)} frames to label, recipe {e.recipe.code}",
    m.TaskClaimed: lambda e: f"by {e.worker}",
    m.MemberTrained: lambda e: f"{e.steps} steps, force RMSE {e.train.force:.3g} eV/Å",
    m.ModelsReady: lambda e: f"committee {e.committee.version}, {e.labels} labels",
    m.ChunkExplored: lambda e: f"chunk {e.chunk}: {_shares(e.counts, e.dropped)}",
    m.CandidatesSelected: lambda e: f"{len(e.labels)} to train on, {len(e.audits)} for the audit",
    m.LabelsDone: _labels,
    m.AuditDone: _audit,
    m.Measured: _measured,
    m.Verified: lambda e: f"{'stable' if e.stable else 'not stable'} {e.detail}",
    m.TrainingJudged: lambda e: f"{e.verdict}: {e.why}",
    m.RoundJudged: lambda e: f"round {e.round} {e.outcome}: {e.why}",
    m.StageEnded: lambda e: f"stage {e.stage + 1} {e.verdict}: {e.why}",
    m.TrustChanged: lambda e: f"{e.trust.low:.3g} and {e.trust.high:.3g}: {e.why}",
    m.CampaignFinished: lambda e: f"{e.verdict}: {e.why}",
    m.TasksRetried: lambda e: ", ".join(task[:8] for task in e.tasks) or "all",
}
