"""What takes its time, shown on a terminal only: a bar, or a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpstream.terminal.console import notes


def at_work(what: str) -> AbstractContextManager[object]:
    """Shows that something is being done, on a terminal, while it takes its time."""
    return notes.status(what) if notes.is_terminal and not notes.quiet else nullcontext()


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[str], None]]:
    """Show a bar for `total` steps (None: not known); call the yielded function with a short text
    after each step."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    is_shown = notes.is_terminal and not notes.quiet
    bar = Progress(*columns, console=notes, transient=True, disable=not is_shown)
    with bar:
        task = bar.add_task("", total=total)
        yield lambda words: bar.update(task, advance=1, description=words)
