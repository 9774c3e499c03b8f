"""`python -m tests.e2e.chaos.doubled MODULE …`: the same program, but whatever it publishes goes
out twice, in any order."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import shared.connect
from shared.ports import Bus
from tests.contract.faults import FaultyBus

connect_bus = shared.connect.connect_bus


def doubled(*arguments: Any) -> Bus:
    return FaultyBus(connect_bus(*arguments), seed=4, double=1.0, drop=0.0, window=1)


if __name__ == "__main__":
    shared.connect.connect_bus = doubled
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
