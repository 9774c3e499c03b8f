"""One measured figure per row and device, and the ratio of the devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

CPU = "cpu"


@dataclass(frozen=True)
class Row:
    what: str
    device: str
    value: float
    unit: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def table(rows: Sequence[Row]) -> Table:
    """Rows of the same figure side by side: each device, and how many times the CPU's the GPU's
    value is."""
    devices = list(dict.fromkeys(row.device for row in rows))
    found = Table("what", *devices, "unit", *(["GPU : CPU"] if len(devices) > 1 else []))
    values = {(row.what, row.device): row.value for row in rows}
    for what, unit in dict.fromkeys((row.what, row.unit) for row in rows):
        mine = [values.get((what, device)) for device in devices]
        shown = ["" if value is None else f"{value:,.3g}" for value in mine]
        found.add_row(what, *shown, unit, *([_ratio(values, what)] if len(devices) > 1 else []))
    return found


def _ratio(values: dict[tuple[str, str], float], what: str) -> str:
    cpu = values.get((what, CPU))
    gpu = next((v for (w, d), v in values.items() if w == what and d != CPU), None)
    return "" if not cpu or gpu is None else f"{gpu / cpu:.2f}"
