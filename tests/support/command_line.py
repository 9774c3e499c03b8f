"""Runs the `dpstream` command in the process of a test, as typed in a shell."""

from __future__ import annotations

import sys

import pytest

from dpstream import cli


def run_command(
    monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `dpstream WORDS…`."""
    monkeypatch.setattr(sys, "argv", ["dpstream", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capture.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err
