"""Times as people write them: `90s`, `10m`, `23h`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(value: Any) -> Any:
    """Reads `90`, `90s`, `10m`, `23h` or `2d` as seconds."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value.strip())
    if found is None:
        raise ValueError("must be a time such as 90s, 10m, 23h or 2d")
    return float(found[1]) * UNITS[found[2]]


Seconds = Annotated[
    float, BeforeValidator(seconds_of, json_schema_input_type=float | str), Field(gt=0)
]
SecondsOrZero = Annotated[
    float, BeforeValidator(seconds_of, json_schema_input_type=float | str), Field(ge=0)
]
