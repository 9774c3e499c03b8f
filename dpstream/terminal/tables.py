"""The tables of the command, without lines: one style for text, one for lists of what runs."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def text_table(*columns: str, **style: Any) -> Table:
    """Bold headings; every column folds text that is too long. `style` is passed on to `Table`."""
    table = Table(box=None, pad_edge=False, header_style="bold", **style)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def listing_table(*columns: str) -> Table:
    """Dim headings; only the last column folds."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    return table
