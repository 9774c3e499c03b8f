"""What several files compare with."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.support.campaigns.small_campaign import finish, write_spec


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The root of a lockstep campaign that ran through in peace, once for all of pytest's workers:
    who asks for it while another runs it waits."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine if worker_id == "master" else mine.parent) / "undisturbed"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            finish(write_spec(folder), folder / "root")
            (folder / "done").touch()
    return folder / "root"
