"""`dpstream archive`: one file with everything of a campaign, compared with its digests."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dpstream.commands import integrity
from dpstream.export.archive import archive_of, differing_files, write_archive
from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger.ledger import finished_uri, read_messages
from dpstream.shared.errors import Refused
from dpstream.shared.messages import CampaignFinished
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns import sample_ledger
from tests.support.command_line import run_command

NAME = sample_ledger.NAME
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *words: run_command(monkeypatch, capsys, *words)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Of a campaign that has ended, in `runs`."""
    return end(sample_ledger.write_sample(tmp_path / "runs"))


def end(store: FolderStore, plan: int = 1) -> FolderStore:
    """A verdict, as the coordinator stores it."""
    (last,) = (m for m in read_messages(store, NAME) if isinstance(m, CampaignFinished))
    last = last.model_copy(update={"id": f"verdict-{plan}", "plan": plan})
    store.create(finished_uri(NAME, plan), last.model_dump_json().encode())
    return store


def listed(call: Call, *options: str) -> list[str]:
    status, out, err = call("list", *options)
    assert (status, err) == (0, "")
    return [line.split()[0] for line in out.splitlines()[1:] if line.startswith(NAME)]


def test_the_file_has_everything_and_works_as_a_store(
    call: Call, store: FolderStore, tmp_path: Path
) -> None:
    status, out, _ = call("archive", NAME)
    assert status == 0
    assert f"{tmp_path}/{NAME}.zip (" in out
    assert f"{NAME}: archived; next: dpstream delete {NAME}" in out
    shutil.unpack_archive(tmp_path / f"{NAME}.zip", tmp_path / "elsewhere")
    copy = FolderStore(tmp_path / "elsewhere" / NAME)
    kept = {key for key in store.list("campaigns/") if "/archived/" not in key}
    assert kept <= set(copy.list("campaigns/")), "nothing is left out"
    for key in kept:
        assert copy.get(key) == store.get(key)
    checked = verify(copy, NAME, deep=True)
    assert (checked.damage, checked.read > 10) == ([], True)
    results = {path.name for path in (tmp_path / "elsewhere" / NAME).iterdir()}
    assert {"models", "dataset", "audit", "report.html", "README.txt", "labels"} <= results
    assert list(tmp_path.glob(".dpstream-*")) == []


def test_an_archived_campaign_is_listed_on_request(call: Call, store: FolderStore) -> None:
    assert listed(call) == [NAME]
    assert call("archive", NAME, "-o", "kept.zip")[0] == 0
    assert listed(call) == []
    assert call("list")[1] == (
        "1 archived campaign is not listed; dpstream list --archived shows it\n"
    )
    assert listed(call, "--archived") == [NAME]
    assert "kept.zip" in call("list", "--archived")[1]
    assert call("status", NAME)[0] == 0, "it is still there"


def test_status_as_json_names_the_archive(call: Call, store: FolderStore, tmp_path: Path) -> None:
    assert json.loads(call("status", "--json")[1])["archived"] is None
    assert call("archive", NAME, "-o", "kept.zip")[0] == 0
    assert json.loads(call("status", "--json")[1])["archived"] == str(tmp_path / "kept.zip")


def test_a_campaign_that_goes_on_is_listed_again(call: Call, store: FolderStore) -> None:
    assert call("archive", NAME)[0] == 0
    store.create(f"campaigns/{NAME}/plans/2-0.json", b"{}")
    assert listed(call) == [NAME]
    end(store, plan=2)
    assert listed(call) == [NAME]
    assert call("archive", NAME, "-o", "again.zip")[0] == 0
    assert listed(call) == []


def test_delete_says_whether_there_is_a_copy(
    call: Call, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\nn\n"))
    status, out, _ = call("delete", NAME)
    assert status == 1
    assert f"{NAME}: not archived; dpstream archive {NAME} keeps a copy" in out
    assert call("archive", NAME)[0] == 0
    assert f"{NAME}: archived as " in call("delete", NAME)[1]
    assert call("delete", NAME, "--yes")[0] == 0
    assert list(store.list(f"campaigns/{NAME}/")) == []


def test_a_folder_that_does_not_exist_is_refused_in_one_line(
    call: Call, store: FolderStore, tmp_path: Path
) -> None:
    status, out, err = call("archive", NAME, "-o", "nowhere/x.zip")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--output: nowhere/x.zip: there is no folder nowhere; create it first" in err


def test_a_damaged_mark_is_none(call: Call, store: FolderStore) -> None:
    assert call("archive", NAME)[0] == 0
    (mark,) = [key for key in store.list(f"campaigns/{NAME}/") if "/archived/" in key]
    store.put(mark, b"{")
    assert listed(call) == [NAME]


def test_nothing_damaged_is_archived(call: Call, store: FolderStore, tmp_path: Path) -> None:
    (model,) = [key for key in store.list("campaigns/") if key.endswith("train-0-frozen.pb")]
    store.put(model, b"other bytes")
    status, out, err = call("archive", NAME)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "train-0-frozen.pb" in err
    assert not (tmp_path / f"{NAME}.zip").exists()
    assert list(tmp_path.glob(".dpstream-*")) == []
    assert listed(call) == [NAME]


def test_only_an_ended_campaign_is_archived(call: Call, tmp_path: Path) -> None:
    sample_ledger.write_half(tmp_path / "runs")
    status, _, err = call("archive", NAME)
    assert status == 2
    assert f"{NAME}: has not ended; dpstream export {NAME} --archive writes what there is" in err


def test_no_file_is_replaced(call: Call, store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.zip").write_text("mine")
    status, _, err = call("archive", NAME)
    assert (status, err) == (
        2,
        f"dpstream: --output: {NAME}.zip: already exists; give another file\n",
    )


def test_who_may_only_read_gets_the_file(
    call: Call, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Refused("s3://bucket: AccessDenied")

    monkeypatch.setattr(integrity, "mark_archived", refuse)
    status, out, _ = call("archive", NAME)
    assert status == 0
    assert f"{NAME}: archived, but dpstream list still shows it: the store refused" in out
    assert (tmp_path / f"{NAME}.zip").exists()


def test_a_file_that_differs_in_the_archive_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("a.npz", "b", "c"):
        (folder / name).write_text(name)
    write_archive(folder)
    assert list(differing_files(folder)) == []
    (folder / "b").write_text("B")
    (folder / "new").write_text("new")
    lines = list(differing_files(folder))
    assert [line.split()[1] for line in lines] == ["export/b", "export/new"]
    for name, place in (("a.npz", 0), ("c", 1)):  # one is compressed
        with zipfile.ZipFile(write_archive(folder)) as archive:
            start = archive.getinfo(f"export/{name}").header_offset + 30 + len(f"export/{name}")
        data = bytearray(archive_of(folder).read_bytes())
        data[start + place] ^= 0xFF
        archive_of(folder).write_bytes(data)
        assert [line.split()[1] for line in differing_files(folder)] == [f"export/{name}"]
