"""Private folders of processes, and those that the dead left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.scratch import private_folder

HOLD = """
import sys
from pathlib import Path
from dpstream.shared.runtime.scratch import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    (folder / "wavefunction").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_private_and_goes(tmp_path: Path) -> None:
    with private_folder(tmp_path / "a" / "b") as one, private_folder(tmp_path / "a" / "b") as other:
        assert one != other
        assert one.stat().st_mode & 0o077 == 0
        (one / "x").touch()
    assert not one.exists()
    assert not other.exists()


@pytest.mark.slow
def test_what_the_dead_left_is_swept_and_the_living_keep_theirs(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    (tmp_path / "somebody-elses").mkdir()
    with private_folder(tmp_path):
        assert (folder / "wavefunction").exists()
    process.kill()
    process.communicate()
    with private_folder(tmp_path):
        assert not folder.exists()
    assert (tmp_path / "somebody-elses").exists()


def test_the_default_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with private_folder(None) as folder:
        assert folder.parent == tmp_path / f"dpstream-{os.getuid()}"
        assert folder.parent.stat().st_mode & 0o077 == 0


def test_a_trap_in_the_temporary_folder_is_not_walked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"dpstream-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpecError, match="set DPSTREAM_SCRATCH"), private_folder(None):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SpecError, match=r"DPSTREAM_SCRATCH: .*file"),
        private_folder(tmp_path / "file"),
    ):
        pass
