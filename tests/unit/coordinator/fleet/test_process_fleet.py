"""Workers as processes of this machine, where the contract of all fleet engines does not reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dpstream.services.coordinator.fleet.engines.process import ProcessFleet
from dpstream.services.coordinator.fleet.pools import PoolSettings
from tests.support.servers.fleets import NAME, until


@pytest.mark.slow
def test_a_worker_whose_environment_cannot_be_read_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while its shell is replaced by its program."""
    pool = PoolSettings(engine="process", serves=("train",), command=("sleep", "60"), max=1)
    fleet = ProcessFleet("unread", {"cpu": pool}, tmp_path)
    fleet.launch("cpu", 1, NAME)

    def unread(self: ProcessFleet) -> Iterator[tuple[str, str, object]]:
        yield from ()

    with monkeypatch.context() as patch:
        patch.setattr(ProcessFleet, "_processes", unread)
        (launch,) = fleet.running()
    assert launch.running == 1
    fleet.end(launch)
    assert until(fleet, lambda each: not each.alive).ended == {"SIGTERM": 1}
