"""The console that commands print to."""

from __future__ import annotations

from rich.console import Console

console = Console()


def say(console: Console, line: str) -> None:
    """One line, as it is."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)
