"""Pages of the tasks and frames of a campaign: those of the state by their ids, then those of the
archive, newest segment first. Only the segments that a page shows are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from dpstream.services.coordinator.ledger.archive import Records, read
from dpstream.services.coordinator.state import (
    ArchiveSegment,
    EndedTask,
    SettledFrame,
    State,
)
from dpstream.services.coordinator.views.overview import LabelLine, label_line, settled_line
from dpstream.services.coordinator.views.tasks import UNKNOWN, TaskLine, ended_line, task_line
from dpstream.shared.errors import CorruptLedger
from dpstream.shared.ports import Store

L = TypeVar("L")
Part = tuple[int, Callable[[], list[L]]]
"""A number of lines, and the lines."""


def task_page(
    store: Store,
    state: State,
    status: str | None,
    kind: str | None,
    offset: int,
    limit: int,
    workers: Mapping[str, str] = UNKNOWN,
    progress: Mapping[str, str] = UNKNOWN,
) -> list[TaskLine]:
    """Tasks of this status and kind (None: of any). Raises CorruptLedger if a segment cannot be
    read."""

    def is_wanted(line: TaskLine) -> bool:
        return status in (None, line.status) and kind in (None, line.kind)

    def ended(tasks: Mapping[str, EndedTask]) -> list[TaskLine]:
        return list(filter(is_wanted, (ended_line(*each) for each in sorted(tasks.items()))))

    def parts() -> Iterator[Part[TaskLine]]:
        lines = (task_line(task, workers, progress) for _, task in sorted(state.tasks.items()))
        yield _part(filter(is_wanted, lines))
        yield _part(ended(state.archive.ended))
        for segment in reversed(state.archive.segments):
            count = _tasks_in(segment, status, kind)
            yield count, partial(lambda each: ended(_records(store, each).tasks), segment)

    return _page(parts(), offset, limit)


def label_page(
    store: Store, state: State, status: str | None, offset: int, limit: int
) -> list[LabelLine]:
    """Frames of this status (None: of any) whose label was requested. Raises as `task_page`."""

    def settled(frames: Mapping[str, SettledFrame]) -> list[LabelLine]:
        return [settled_line(*each) for each in sorted(frames.items())]

    def parts() -> Iterator[Part[LabelLine]]:
        frames = (frame for _, frame in sorted(state.labels.frames.items()))
        yield _part(label_line(frame) for frame in frames if status in (None, frame.status))
        if status not in (None, "labelled"):
            return
        yield _part(settled(state.archive.settled))
        for segment in reversed(state.archive.segments):
            yield (
                segment.frames,
                partial(lambda each: settled(_records(store, each).frames), segment),
            )

    return _page(parts(), offset, limit)


def _records(store: Store, segment: ArchiveSegment) -> Records:
    try:
        return read(store, segment)
    except ValueError as error:
        raise CorruptLedger(f"{segment.stored.uri}: missing or not as written") from error


def _part(lines: Iterable[L]) -> Part[L]:
    found = list(lines)
    return len(found), lambda: found


def _tasks_in(segment: ArchiveSegment, status: str | None, kind: str | None) -> int:
    found = 0
    for name, count in segment.tasks.items():
        its_kind, its_status = name.split()
        found += count if kind in (None, its_kind) and status in (None, its_status) else 0
    return found


def _page(parts: Iterable[Part[L]], offset: int, limit: int) -> list[L]:
    page = list[L]()
    for count, lines in parts:
        if offset < count:
            page += lines()[offset : offset + limit - len(page)]
        offset = max(0, offset - count)
        if len(page) == limit:
            break
    return page
