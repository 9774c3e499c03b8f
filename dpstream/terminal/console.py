"""The console that all commands print to."""

from __future__ import annotations

from rich.console import Console

console = Console()


def say(console: Console, line: str) -> None:
    """Print one line unchanged: no wrapping, markup or highlighting."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)
