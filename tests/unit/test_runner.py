"""Labeling programs as processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.orphans import outlived

LABELER = """
from pathlib import Path
from dpstream.services.labeler.runner import run
run(["sleep", "300"], Path.cwd(), cores=1, seconds=300, tick=lambda: None)
"""


@pytest.mark.slow
def test_a_program_does_not_outlive_its_labeler(tmp_path: Path) -> None:
    assert outlived(LABELER, tmp_path, bool) == set()
