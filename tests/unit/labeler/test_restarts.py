"""Restart files of interrupted labels: what is kept, what is accepted, and how long it may take."""

from __future__ import annotations

import io
import struct
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.labeler import restarts
from dpstream.services.labeler.codes.cp2k.cp2k import Cp2k
from dpstream.services.labeler.codes.parse import are_whole_records
from dpstream.services.labeler.codes.qe.qe import Qe
from dpstream.services.labeler.restarts import Restart, accepted_by, collected, pack, unpack
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.errors import Stopped, StoreError
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.task_outcome import ending_of
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Ref
from tests.support.campaigns.single_tasks import campaign_with, claim, next_attempt, released
from tests.support.workers.worker import label

REF = Ref.to("campaigns/world/results/t/1/restart-k.zip", b"files")


def record(data: bytes) -> bytes:
    """A record of a Fortran unformatted file."""
    mark = struct.pack("i", len(data))
    return mark + data + mark


ORBITALS = record(b"header") + record(b"") + record(b"coefficients")
RESTART = Restart("key", "digest", {"dpstream-RESTART.wfn": ORBITALS})


# ------------------------------------------------------------------------------------ archives


def test_files_come_back_as_they_were() -> None:
    assert unpack(pack(RESTART)) == RESTART
    assert accepted_by(Cp2k(), RESTART)


def archive(**entries: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, text in entries.items():
            file.writestr(name.replace("__", "."), text)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        pack(RESTART)[:-30],
        pack(RESTART).replace(b"coefficients", b"coefficientz"),
        archive(other="{}"),
        archive(restart__json="not JSON"),
        archive(restart__json='["key", "digest"]'),
        archive(restart__json='{"frame": "key"}'),
    ],
)
def test_anything_else_is_no_restart(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an archive of restart files"):
        unpack(data)


def test_an_archive_may_not_unpack_to_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "MAX_ARCHIVE", 1000)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("restart.json", b"0" * 1001)
    assert len(out.getvalue()) < 1000
    with pytest.raises(ValueError, match="too large"):
        unpack(out.getvalue())


@pytest.mark.parametrize(
    "name",
    [
        "../dpstream-RESTART.wfn",
        "/tmp/x-RESTART.wfn",
        "a/x-RESTART.wfn",
        "cp2k.inp",
        ".-RESTART.kpx",
    ],
)
def test_only_the_files_that_the_code_names_are_used(name: str) -> None:
    assert not accepted_by(Cp2k(), Restart("key", "digest", {name: ORBITALS}))


@pytest.mark.parametrize("size", range(1, len(ORBITALS)))
def test_a_file_that_was_cut_off_is_not_used(size: int) -> None:
    at_an_end = size in (14, 22)
    assert are_whole_records(ORBITALS[:size]) == at_an_end


def test_an_empty_or_missing_file_is_not_used() -> None:
    for files in ({}, {"x-RESTART.wfn": b""}, {"x-RESTART.wfn": b"text"}):
        assert not accepted_by(Cp2k(), Restart("key", "digest", files))


# ----------------------------------------------------------------------------------- a run's folder


def test_what_is_collected(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (folder / "below").mkdir(parents=True)
    elsewhere.write_bytes(ORBITALS)
    (folder / "mine-RESTART.wfn").write_bytes(ORBITALS)
    (folder / "linked-RESTART.wfn").symlink_to(elsewhere)
    (folder / "below" / "other-RESTART.wfn").write_bytes(ORBITALS)
    (folder / "mine-RESTART.wfn.bak-2").write_bytes(ORBITALS)
    (folder / "cp2k.inp").write_text("&GLOBAL")
    assert collected(Cp2k(), folder) == {"mine-RESTART.wfn": ORBITALS}


@pytest.mark.parametrize("newest", [None, b"", ORBITALS[:-1]])
def test_if_cp2k_was_killed_while_it_wrote_the_file_before_is_kept(
    tmp_path: Path, newest: bytes | None
) -> None:
    (tmp_path / "mine-RESTART.wfn.bak-1").write_bytes(ORBITALS)
    if newest is not None:
        (tmp_path / "mine-RESTART.wfn").write_bytes(newest)
    assert collected(Cp2k(), tmp_path) == {"mine-RESTART.wfn": ORBITALS}


def test_a_linked_folder_is_not_collected(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere" / "dpstream.save"
    elsewhere.mkdir(parents=True)
    (elsewhere / "charge-density.dat").write_bytes(ORBITALS)
    folder.mkdir()
    (folder / "out").symlink_to(elsewhere.parent)
    assert collected(Qe(), folder) == {}
    (folder / "out").unlink()
    elsewhere.parent.rename(folder / "out")
    assert collected(Qe(), folder).keys() == {"out/dpstream.save/charge-density.dat"}


def test_files_beyond_the_limit_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine-RESTART.wfn").write_bytes(ORBITALS)
    monkeypatch.setattr(restarts, "MAX_BYTES", len(ORBITALS) - 1)
    assert collected(Cp2k(), tmp_path) == {}


# ------------------------------------------------------------------------------------ the release


def context(store: Any, folder: Path) -> Context:
    stopping = threading.Event()
    stopping.set()
    return Context(store, InProcessBus(), label(), folder, "w", stopping)


def test_the_release_names_the_restart_files(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    attempt = context(store, tmp_path)
    attempt.put_restart("restart-key.zip", b"files", 10.0)
    event = ending_of(Stopped("the worker is stopping"), attempt)
    assert isinstance(event, m.TaskReleased)
    assert event.restart == Ref.to("campaigns/methane/results/t1/1/restart-key.zip", b"files")
    assert store.get(event.restart.uri) == b"files"
    assert event.seconds < 5


class AwayStore:
    """A store that refuses or, after `seconds`, still has not answered."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def create(self, key: str, data: bytes) -> bool:
        time.sleep(self.seconds)
        raise StoreError("no route to host")


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_the_task_is_released_without_a_store(tmp_path: Path, seconds: float) -> None:
    attempt = context(AwayStore(seconds), tmp_path)
    started = time.monotonic()
    attempt.put_restart("restart-key.zip", b"files", 0.2)
    assert time.monotonic() - started < 10
    event = ending_of(Stopped("the worker is stopping"), attempt)
    assert isinstance(event, m.TaskReleased)
    assert event.restart is None


# ------------------------------------------------------------------------------- the next attempt


def with_restart(command: m.Command) -> m.TaskReleased:
    return released(command).model_copy(update={"restart": REF, "preempted": True})


def test_the_next_attempts_of_a_label_continue_from_its_files() -> None:
    campaign, command = campaign_with(m.Label, mode="streaming")
    claim(campaign, command)
    second = next_attempt(campaign, with_restart(command))
    assert (second.attempt, second.resume) == (2, REF)
    claim(campaign, second)
    assert next_attempt(campaign, released(second)).resume == REF
    assert campaign.state.tasks[command.task].command.resume == REF


def test_a_reproducible_campaign_starts_from_the_beginning() -> None:
    campaign, command = campaign_with(m.Label, mode="lockstep")
    claim(campaign, command)
    assert next_attempt(campaign, with_restart(command)).resume is None


def test_a_released_training_continues_from_its_own_checkpoint_only() -> None:
    """What a labeler claims to have left of a training is not used."""
    campaign, command = campaign_with(m.Train, mode="streaming")
    claim(campaign, command)
    assert next_attempt(campaign, with_restart(command)).resume is None
