"""A progress bar, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpstream.terminal.console import notes


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
