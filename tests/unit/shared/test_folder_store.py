"""What only a folder can get wrong."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpstream.shared.errors import NotFound, StoreError
from dpstream.shared.store.folder import FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def staged(store: FolderStore) -> list[Path]:
    return list((store.root / ".staging").iterdir())


def test_nothing_is_made_before_something_is_written(store: FolderStore) -> None:
    assert list(store.list("")) == []
    assert not store.exists("a")
    store.delete("a")
    assert not store.root.exists()


def test_objects_are_plain_files_and_nothing_is_left_beside_them(store: FolderStore) -> None:
    store.put("a/b.json", b"{}")
    store.create("a/c", b"1")
    store.create("a/c", b"2")
    assert (store.root / "a" / "b.json").read_bytes() == b"{}"
    assert staged(store) == []


def test_what_the_dead_left_is_not_listed_and_swept_an_hour_later(store: FolderStore) -> None:
    store.put("a", b"x")
    old, young = store.root / ".staging" / "old", store.root / ".staging" / "young"
    for left in (old, young):
        left.write_bytes(b"half an obj")
    os.utime(old, (time.time() - 4000,) * 2)
    assert list(store.list("")) == ["a"]
    FolderStore(store.root).put("b", b"x")
    assert staged(store) == [young]


def test_strange_files_in_the_folder_are_left_alone(store: FolderStore) -> None:
    store.put("a/b", b"x")
    for name in (".DS_Store", "notes with space.txt", "ä"):
        (store.root / "a" / name).write_bytes(b"x")
    (store.root / "a" / "link").symlink_to(store.root)
    (store.root / "a" / "broken").symlink_to(store.root / "nowhere")
    assert list(store.list("")) == ["a/b"]


def test_an_object_and_a_folder_cannot_share_a_name(store: FolderStore) -> None:
    store.put("a/b", b"x")
    store.put("c", b"x")
    for call in (store.put, store.create):
        for key in ("a", "c/d"):
            with pytest.raises(StoreError, match=str(store.root)) as raised:
                call(key, b"y")
            assert not isinstance(raised.value, NotFound)
    assert list(store.list("")) == ["a/b", "c"]
    assert staged(store) == []


def test_folders_removed_by_others_are_made_again(store: FolderStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a model")
    for round_ in range(2):
        assert store.create("campaigns/methane/claims/t/1", b"x"), round_
        store.upload("campaigns/methane/model.pb", source)
        assert store.get("campaigns/methane/model.pb") == b"a model"
        shutil.rmtree(store.root if round_ else store.root / "campaigns")
    store.put("campaigns/methane/x", b"x")


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=str(tmp_path / "file")):
        FolderStore(tmp_path / "file").put("a", b"x")


@pytest.fixture
def nobody() -> Iterator[None]:
    """Without root's right to write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_an_unwritable_folder_is_named(store: FolderStore, request: pytest.FixtureRequest) -> None:
    store.put("a", b"x")
    store.root.chmod(0o555)
    request.getfixturevalue("nobody")
    for call in (store.put, store.create):
        with pytest.raises(StoreError, match=rf"[Pp]ermission denied.*{store.root}"):
            call("b/c", b"x")
    with pytest.raises(StoreError, match=r"[Pp]ermission denied"):
        store.delete("a")


def test_a_full_disk_leaves_the_old_object(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.put("a", b"new")
    with pytest.raises(StoreError, match="No space left"):
        store.create("b", b"new")
    assert store.get("a") == b"old"
    assert list(store.list("")) == ["a"]
    assert staged(store) == []
