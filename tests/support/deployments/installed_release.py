"""Release 0.1.0 of dpstream beside this one, from the history of the repository. Its processes find
its code first, and so its version."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

COMMIT, VERSION = "5bc6919", "0.1.0"
ROOT = Path(__file__).parents[3]


def install(folder: Path) -> Path:
    """Its code in `folder`. Skips the test where the repository has no history."""
    found = subprocess.run(
        ["git", "archive", "--format=tar", COMMIT], cwd=ROOT, capture_output=True, check=False
    )
    if found.returncode != 0:
        if os.environ.get("CI"):
            raise AssertionError(found.stderr)
        pytest.skip(f"no commit {COMMIT} here")
    with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    metadata = folder / f"dpstream-{VERSION}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: dpstream\nVersion: {VERSION}\n")
    return folder


def run(release: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python WORDS…` with the code of the release."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=release,
        env={**os.environ, "PYTHONPATH": str(release), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
