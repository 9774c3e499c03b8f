"""`dpstream why FRAME`: the history of one frame, in words.

Most frames that were found are never chosen and have no history. These are looked up in the batches
that the explorers uploaded, and what each selection made of their batch comes from the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.coordinator.views.frames import FrameHistory, History
from dpstream.shared.atoms.frames import Batch, frame_key
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import (
    CandidatesSelected,
    ChunkExplored,
    Explore,
    Label,
    ManifestFrozen,
    Message,
    Select,
    generator_of,
)
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.values import Chosen, PoolItem, RefusedFrames, is_offered

NEAR = 5
"""Keys named where none or several fit."""


def why(store: Store, campaign: str, frame: str) -> list[str]:
    """Why the frame whose key begins with `frame` was labelled, or was not: one line per event, in
    order.

    Raises SpecError where no key of the campaign begins with `frame`, or several do, and names
    some.
    """
    messages = list(read_messages(store, campaign))
    history = History.of(messages)
    matches = [key for key in history.lives if key.startswith(frame)]
    if frame in matches:
        matches = [frame]
    if len(matches) == 1:
        return list(_life(history, history.lives[matches[0]]))
    if not matches:
        matches = [key for key in history.screened if key.startswith(frame)]
        if len(matches) == 1:
            return [f"frame {matches[0]}", *_screened(history, matches[0])]
    found = dict(_sightings(store, messages)) if not matches else {}
    matches = matches or [key for key in found if key.startswith(frame)]
    if len(matches) == 1:
        return list(_passed_over(store, history, messages, matches[0], found[matches[0]]))
    raise SpecError(_no_such(frame, campaign, matches, [*history.lives, *found]))


def _no_such(frame: str, campaign: str, matches: list[str], known: list[str]) -> str:
    if matches:
        some = ", ".join(sorted(matches)[:NEAR])
        return (
            f"FRAME: {frame!r}: matches {len(matches)} frames of {campaign}: {some}; "
            "give more characters"
        )
    near = get_close_matches(frame, [key[: len(frame)] for key in known], NEAR, cutoff=0.0)
    full = [next(key for key in known if key.startswith(start)) for start in dict.fromkeys(near)]
    hint = f"; similar: {', '.join(full)}" if full else "; the campaign has no frames yet"
    return f"FRAME: {frame!r}: no such frame in {campaign}{hint}"


# ----------------------------------------------------------------------------------- a known life


def _life(history: History, life: FrameHistory) -> Iterator[str]:
    yield f"frame {life.ref.key}"
    yield from _origin(history, life)
    for command in life.tasks:
        yield _task(history, command)
    for judged in life.judged_accurate:
        yield f"{_at(history, judged.time)}: committee {judged.version} judged it accurate"
    yield from _verdict(history, life)
    yield _use(history, life)


def _origin(history: History, life: FrameHistory) -> Iterator[str]:
    yield from _screened(history, life.ref.key)
    if life.chosen is None or life.selection is None:
        if life.purpose == "initial":
            yield (
                "submitted with the campaign, to be labelled before the first training"
                if life.plan == 1
                else f"added by plan {life.plan}, to be labelled at once"
            )
        elif life.purpose == "property":
            yield "submitted with the campaign, to compare a property with the recipe's"
        return
    chosen, event = life.chosen, life.selection
    if not is_offered(chosen.trajectory):
        yield _found(history, chosen.trajectory, chosen.time_ps, chosen.version, chosen.deviation)
    purpose = "the audit" if life.purpose == "audit" else "training"
    weight = f", weight {chosen.weight:g}" if life.purpose == "audit" else ""
    yield (
        f"{_at(history, event.time)}: chosen for {purpose} in stage {event.stage + 1}, "
        f"under committee {event.version}{_plan(history, life)}{weight}: {chosen.reason}"
    )


def _plan(history: History, life: FrameHistory) -> str:
    """The plan that was in force, if there was more than one."""
    return f" and plan {life.plan}" if history.plans.changed else ""


def _screened(history: History, key: str) -> Iterator[str]:
    """The verdicts that the generators which offered the frame received."""
    for event, verdict in history.screened.get(key, ()):
        under = f" by committee {event.version}" if event.version else ""
        deviation = "" if verdict.deviation is None else f", deviation {verdict.deviation:.4g}"
        reason = f": {verdict.reason}" if verdict.reason else ""
        yield (
            f"{_at(history, event.time)}: generator {generator_of(event)}, frame "
            f"{verdict.index} of {event.correlation}: {verdict.verdict}{under}{deviation}{reason}"
        )


def _found(
    history: History, trajectory: str, time_ps: float, version: int, deviation: float
) -> str:
    command = history.explored.get(trajectory)
    return (
        f"found in trajectory {trajectory}{_where(command)} at {time_ps:g} ps by committee "
        f"{version}: deviation {deviation:.4g}{_window(command)}"
    )


def _where(command: Explore | None) -> str:
    return "" if command is None else f" ({command.condition})"


def _window(command: Explore | None) -> str:
    if command is None:
        return ""
    trust = command.trust
    unit = " eV/Å" if trust.relative is None else " (relative)"
    return f"{unit}; the trajectory began with trust levels {trust.low:g} and {trust.high:g}"


def _task(history: History, command: Label) -> str:
    claim = history.claims.get((command.task, command.attempt))
    by = f"taken by {claim.worker}" if claim else "not taken yet"
    return (
        f"{_at(history, command.time)}: label task {command.task}, attempt {command.attempt}, {by}"
    )


def _verdict(history: History, life: FrameHistory) -> Iterator[str]:
    if life.answered is None:
        yield "no label yet"
        return
    at = _at(history, life.answered.time)
    if life.accepted is not None:
        label = life.accepted
        how = "found in the store" if label.reused else f"computed in {label.seconds:.3g} s"
        yield f"{at}: label accepted, {how}; largest force {label.max_force:.3g} eV/Å"
        yield f"label: {label.label.uri}"
    elif life.rejected is not None:
        yield f"{at}: label rejected by the rule {life.rejected.rule}: {life.rejected.detail}"


def _use(history: History, life: FrameHistory) -> str:
    if life.purpose == "audit":
        return "never trained on: an audit frame measures the true error"
    if life.purpose == "property":
        return "never trained on: it measures a property"
    if life.trained is None:
        return "in no dataset version" + ("" if life.rejected else " yet")
    text = f"{_at(history, life.trained.time)}: in dataset version {life.trained.dataset}"
    command = life.trained.command
    if command is None:
        return text
    first = "the final model" if command.final else f"committee {command.version}"
    return f"{text}, first trained on by {first}"


def _at(history: History, time: float) -> str:
    """Time since the campaign began, h:mm:ss."""
    began = history.submitted.time if history.submitted else time
    seconds = max(0, round(time - began))
    return f"+{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


# ----------------------------------------------------------------------------------- never chosen


class Sighting:
    """A frame in an uploaded batch, which holds candidates or a random sample."""

    def __init__(self, event: ChunkExplored, item: PoolItem, batch: Batch, row: int) -> None:
        self.event, self.item = event, item
        self.kind = "candidate" if item == event.candidates else "reservoir sample"
        self.time_ps = float(batch.arrays["time_ps"][row])
        self.deviation = float(batch.arrays["devi_f"][row])


def _sightings(store: Store, messages: Iterable[Message]) -> Iterator[tuple[str, Sighting]]:
    """Every frame that explorers uploaded, by key."""
    for event in messages:
        if not isinstance(event, ChunkExplored):
            continue
        for item in filter(None, (event.reservoir, event.candidates)):
            batch = Batch.loads(fetch(store, item.frames))
            for row, frame in enumerate(batch):
                yield frame_key(frame), Sighting(event, item, batch, row)


def _passed_over(
    store: Store, history: History, messages: Iterable[Message], key: str, seen: Sighting
) -> Iterator[str]:
    item = seen.item
    yield f"frame {key}"
    yield _found(history, item.trajectory, seen.time_ps, item.version, seen.deviation)
    yield f"{_at(history, seen.event.time)}: uploaded as {seen.kind}; never chosen for a label"
    for event in _offered_to(messages, item):
        under = f"a selection under committee {event.version} considered this frame"
        yield f"{_at(history, event.time)}: {under}: {_took(event)}{_refused(store, event, key)}"


def _offered_to(messages: Iterable[Message], item: PoolItem) -> Iterator[CandidatesSelected]:
    """The selections from a pool with this batch, each with all frames that it took."""
    pools: set[str] = set()
    tasks: set[str] = set()
    found: dict[str, CandidatesSelected] = {}
    for message in messages:
        if isinstance(message, ManifestFrozen) and message.purpose == "pool":
            if item.frames.uri in message.body:
                pools.add(message.manifest.uri)
        elif isinstance(message, Select) and message.pool.uri in pools:
            tasks.add(message.task)
        elif isinstance(message, CandidatesSelected) and message.task in tasks:
            before = found.get(message.task)
            found[message.task] = message if before is None else _together(before, message)
    yield from found.values()


def _together(before: CandidatesSelected, chunk: CandidatesSelected) -> CandidatesSelected:
    update = {
        "labels": before.labels + chunk.labels,
        "audits": before.audits + chunk.audits,
        "refused": before.refused | chunk.refused,
        "refusals": before.refusals or chunk.refusals,
    }
    return chunk.model_copy(update=update)


def _took(event: CandidatesSelected) -> str:
    taken = _count(event.labels, "for training") + ", " + _count(event.audits, "for the audit")
    refused = "; ".join(f"{why}: {count}" for why, count in event.refused.items())
    return f"chose {taken}" + (f"; not chosen: {refused}" if refused else "")


def _refused(store: Store, event: CandidatesSelected, key: str) -> str:
    """Why the selection refused this frame, unless it only had no slot left."""
    if event.refusals is None:
        return ""
    refused = RefusedFrames.model_validate_json(fetch(store, event.refusals)).frames
    return f"; this frame: {refused[key]}" if key in refused else ""


def _count(chosen: tuple[Chosen, ...], purpose: str) -> str:
    return f"{len(chosen)} {purpose}"
