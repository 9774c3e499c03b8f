"""The consoles that all commands print to."""

from __future__ import annotations

from rich.console import Console

console = Console()
"""Prints results."""
notes = Console()
"""Prints what a person at the terminal wants to know besides: the plan, progress, the next step.
`--quiet` silences it."""


def print_line(console: Console, line: str) -> None:
    """Print one line unchanged: no wrapping, markup or highlighting."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)
