"""What a check of `dpstream doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["works", "missing", "absent"]


@dataclass(frozen=True)
class Finding:
    """One row of the table. *missing*: required; *absent*: only some campaigns require it."""

    part: str
    state: State
    detail: str
    fix: str = ""
