"""Runs the `dpstream` command in the process of a test, as typed in a shell."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest

from dpstream import cli
from dpstream.commands import deployment
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


def with_embedded_broker(monkeypatch: pytest.MonkeyPatch) -> InProcessBus:
    """Commands of a deployment publish there instead of at a broker."""
    bus = InProcessBus()
    monkeypatch.setattr(deployment, "open_bus", lambda broker: bus)
    monkeypatch.setattr(deployment, "closing", nullcontext)
    return bus
