"""Runs the `dpstream` command, as typed in a shell, in the process of a test or in its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest

from dpstream import cli
from dpstream.commands import submit
from dpstream.shared.bus.memory import InProcessBus


def run_command(
    monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `dpstream WORDS…`."""
    monkeypatch.setattr(sys, "argv", ["dpstream", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capture.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def dpstream(*words: object, status: int = 0, **environment: str) -> str:
    """Standard output of `dpstream WORDS…` in a process of its own, which ends with `status`."""
    done = subprocess.run(
        [sys.executable, "-m", "dpstream", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def with_embedded_broker(monkeypatch: pytest.MonkeyPatch) -> InProcessBus:
    """`dpstream submit` publishes there instead of at a broker."""
    bus = InProcessBus()
    monkeypatch.setattr(submit, "open_bus", lambda broker: bus)
    monkeypatch.setattr(submit, "closing", nullcontext)
    return bus
