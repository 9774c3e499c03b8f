"""What the commands print on a terminal of 80 columns, as a user sees it."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.support.campaigns import sample_ledger

COLUMNS, LINES = 80, 24
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
EXAMPLE = Path(__file__).parents[3] / "examples" / "methane"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec and a campaign that is exploring."""
    folder = tmp_path_factory.mktemp("user")
    sample_ledger.write_half(folder / "runs")
    shutil.copytree(EXAMPLE, folder / "methane")
    return folder


def lines(folder: Path, *words: str) -> list[str]:
    """What `dpstream WORDS…` prints on a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(LINES), "TERM": "xterm"}
    command = [sys.executable, "-m", "dpstream", *words]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment
    ) as process:
        os.close(theirs)
        text = b"".join(_read(ours, process)).decode()
    os.close(ours)
    assert process.returncode == 0, text
    plain = CONTROL.sub("", text).replace("\r\n", "\n")
    return [line.split("\r")[-1].rstrip() for line in plain.split("\n") if line]


def _read(descriptor: int, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    while True:
        ready, _, _ = select.select([descriptor], [], [], 0.1)
        try:
            data = os.read(descriptor, 65536) if ready else b""
        except OSError:  # the terminal is closed
            return
        if not data and process.poll() is not None and not ready:
            return
        yield data


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        pytest.param(("run", "--help"), marks=pytest.mark.soak),
        ("validate", "methane/campaign.yaml"),
        ("status",),
        pytest.param(("list",), marks=pytest.mark.soak),
        ("why", sample_ledger.KEYS[sample_ledger.PASSED_OVER][:8]),
    ],
    ids=" ".join,
)
def test_no_line_is_wider_than_the_terminal(folder: Path, words: tuple[str, ...]) -> None:
    shown = lines(folder, *words)
    assert len(shown) > 1
    wide = [line for line in shown if cell_len(line) > COLUMNS]
    assert wide == []


@pytest.mark.slow
def test_the_plan_ends_with_what_to_type_next(folder: Path) -> None:
    shown = lines(folder, "validate", "methane/campaign.yaml")
    assert shown[-1] == "next: dpstream run methane/campaign.yaml"
    assert not any(line.startswith("next: ") for line in shown[:-1])


@pytest.mark.slow
def test_the_help_has_the_commands_in_groups_in_the_order_of_their_use(folder: Path) -> None:
    shown = "\n".join(lines(folder, "--help"))
    headings = re.findall(r"╭─ ([A-Z][a-z ]+) ─", shown)
    assert headings[:4] == ["Options", "Run a campaign", "Follow a campaign", "Steer a campaign"]
    first = re.findall(r"│ ([a-z-]+)  ", shown)
    assert first.index("new") < first.index("validate") < first.index("run") < first.index("list")
