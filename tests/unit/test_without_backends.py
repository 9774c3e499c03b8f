"""Services and commands where no backend of DeePMD-kit can be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "torch", "jax"):
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Missing())
"""
PLANS = """
import os
from dpstream.services.{name}.__main__ import plans
from dpstream.services.{name}.settings import {Name}Settings
from dpstream.shared.settings import read_settings
os.environ |= dict(DPSTREAM_STORE="runs", DPSTREAM_BROKER="amqp://localhost", DPSTREAM_DEVICE="cpu")
assert plans(read_settings({Name}Settings), Path("scratch"))
"""
COMMANDS = """
import dpstream.cli, dpstream.inputs.gather, dpstream.inputs.check_spec
import dpstream.inputs.check_training, dpstream.properties, dpstream.initial
"""


@pytest.mark.parametrize("name", ["trainer", "explorer", "labeler"])
def test_a_service_makes_its_plans(name: str) -> None:
    _run(WITHOUT + PLANS.format(name=name, Name=name.capitalize()))


def test_commands_are_imported() -> None:
    _run(WITHOUT + COMMANDS)


def _run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
