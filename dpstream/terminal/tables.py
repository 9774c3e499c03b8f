"""The two styles of borderless tables: for text, and for lists of processes and campaigns."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def text_table(*columns: str, **style: Any) -> Table:
    """A table with bold headings whose columns fold long text, but no heading. `style` is passed to
    `Table`."""
    table = Table(box=None, pad_edge=False, header_style="bold", **style)
    for column in columns:
        table.add_column(column, overflow="fold", min_width=len(column))
    return table


def listing_table(*columns: str) -> Table:
    """A table with dim headings; only the last column folds."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    return table
