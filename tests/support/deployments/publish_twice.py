"""`python -m tests.support.deployments.publish_twice MODULE …`: the same program, but everything it
publishes arrives twice, in any order."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import dpstream.shared.connect
from dpstream.shared.ports import Bus
from tests.support.adapters.faulty_adapters import FaultyBus

connect_bus = dpstream.shared.connect.connect_bus


def connect_publishing_twice(*arguments: Any) -> Bus:
    return FaultyBus(connect_bus(*arguments), seed=4, double=1.0, drop=0.0, window=1)


if __name__ == "__main__":
    dpstream.shared.connect.connect_bus = connect_publishing_twice
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
