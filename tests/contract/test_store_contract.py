"""What every store must do, in the order of `shared/ports.py`."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sized
from pathlib import Path

import pytest

from dpstream.shared.errors import DigestMismatch, NotFound, StoreError
from dpstream.shared.ports import Store
from tests.support.soak import SOAK

Connect = Callable[[], Store]

RACE, PATIENCE = 1.0, 45.0
"""Seconds that readers and writers meet at least, and that they try to see enough."""
ENOUGH = 200 if SOAK else 20

BAD_KEYS = [
    "",
    "/",
    "/absolute",
    "trailing/",
    "a//b",
    "..",
    "../up",
    "a/../b",
    "a/..",
    ".",
    "a/./b",
    ".hidden",
    "a/.hidden",
    "a b",
    "a\\b",
    "a\nb",
    "a\n",
    "a\x00b",
    "ä",
    "a/📎",
    "a?b",
    "a%2e",
    "C:x",
    "x" * 513,
]


def signed(seed: int) -> bytes:
    """A body of random length that says whether it is whole."""
    chance = random.Random(seed)
    body = chance.randbytes(chance.choice([10, 1_000, 300_000]))
    return hashlib.sha256(body).hexdigest().encode() + body


def is_whole(data: bytes) -> bool:
    return hashlib.sha256(data[64:]).hexdigest().encode() == data[:64]


# ------------------------------------------------------------------------------- get, put, create


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 20_000], ids=len)
def test_what_was_put_is_got_to_the_bit(store: Store, data: bytes) -> None:
    store.put("campaigns/methane/x.json", data)
    assert store.get("campaigns/methane/x.json") == data


def test_put_replaces(store: Store) -> None:
    store.put("a", b"a longer body")
    store.put("a", b"short")
    assert store.get("a") == b"short"


def test_all_connections_see_one_store(store_factory: Connect) -> None:
    one, two = store_factory(), store_factory()
    one.put("a/b", b"1")
    assert two.get("a/b") == b"1"
    assert two.create("a/b", b"2") is False
    assert list(two.list("a")) == ["a/b"]
    two.delete("a/b")
    assert not one.exists("a/b")


def test_create_makes_an_object_only_where_there_is_none(store: Store) -> None:
    assert store.create("claims/t/1", b"first") is True
    assert store.create("claims/t/1", b"second") is False
    assert store.create("claims/t/1", b"first") is False
    assert store.get("claims/t/1") == b"first"
    assert store.create("claims/t/1.stop", b"") is True


def test_create_is_refused_where_put_was(store: Store) -> None:
    store.put("a", b"put")
    assert store.create("a", b"created") is False
    assert store.get("a") == b"put"


def test_what_was_deleted_can_be_created_again(store: Store) -> None:
    store.put("a", b"1")
    store.delete("a")
    assert store.create("a", b"2") is True
    assert store.get("a") == b"2"


def test_what_is_absent_is_not_found(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"x")
    for key in ("b", "a/c", "a/b/c", "a"):  # a prefix of a key is no object
        assert store.exists(key) is False
        with pytest.raises(NotFound):
            store.get(key)
        with pytest.raises(NotFound):
            store.download(key, tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_what_is_longer_than_expected_is_not_read(store: Store) -> None:
    store.put("a", b"1234")
    assert store.get("a", most=4) == b"1234"
    with pytest.raises(DigestMismatch, match="4 bytes, above 3"):
        store.get("a", most=3)


def test_exists(store: Store) -> None:
    assert store.exists("a/b") is False
    store.put("a/b", b"")
    assert store.exists("a/b") is True


def test_delete_is_no_error_when_absent(store: Store) -> None:
    store.put("a/b", b"x")
    for key in ("a/b", "a/b", "a", "nowhere/at/all"):
        store.delete(key)
    assert list(store.list("")) == []


# ------------------------------------------------------------------------------------------- list


def test_list_takes_a_prefix_of_the_key_not_a_folder(store: Store) -> None:
    keys = ["ab", "a/1", "a/10", "a/2/x", "b/1", "a-b", "a.b", "A/1", "a_b"]
    for key in keys:
        store.put(key, b"x")

    def listed(prefix: str) -> list[str]:
        return list(store.list(prefix))

    assert listed("") == sorted(keys)
    for prefix in ("a", "a/", "a/1", "a/2", "a/2/", "a/2/x", "a-", "b", "ab"):
        assert listed(prefix) == sorted(key for key in keys if key.startswith(prefix)), prefix
    for prefix in ("c", "a/3", "b/1/", "abc", "a/2/x/"):
        assert listed(prefix) == []


def test_list_is_sorted_as_strings_are(store: Store) -> None:
    keys = [f"ledger/{n:08d}-{epoch}" for n in (1, 2, 10, 11) for epoch in (1, 2)]
    for key in reversed(keys):
        store.create(key, b"x")
    assert list(store.list("ledger/")) == keys
    assert list(store.list("ledger/0000001")) == keys[4:]
    assert list(store.list("ledger/", after="ledger/00000002")) == keys[2:]
    assert list(store.list("ledger/", after=keys[2])) == keys[3:]
    assert list(store.list("ledger/0000001", after=keys[6])) == keys[7:]
    assert list(store.list("ledger/", after=keys[-1])) == []


def test_list_of_an_empty_store_is_empty(store: Store) -> None:
    assert list(store.list("")) == []
    assert list(store.list("campaigns/")) == []


def test_entries_are_the_keys_and_folders_directly_in_a_folder(store: Store) -> None:
    for key in ["ab", "a/1", "a/10", "a/2/x", "a/2/y/z", "a/3", "a-b/1", "b/1/2/3"]:
        store.put(key, b"x")
    assert list(store.entries("")) == ["a-b/", "a/", "ab", "b/"]
    assert list(store.entries("a/")) == ["a/1", "a/10", "a/2/", "a/3"]
    assert list(store.entries("a/2/")) == ["a/2/x", "a/2/y/"]
    assert list(store.entries("b/")) == ["b/1/"]
    for nowhere in ("c/", "a/1/"):
        assert list(store.entries(nowhere)) == []
    for bad in ("/", "../", "a//"):
        with pytest.raises(StoreError):
            list(store.entries(bad))


# ------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("key", BAD_KEYS, ids=[repr(k)[:20] for k in BAD_KEYS])
def test_what_is_no_key_is_refused_everywhere(store: Store, key: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.put(key, b"x"),
        lambda: store.create(key, b"x"),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.upload(key, source),
        lambda: store.download(key, tmp_path / "target"),
    ]
    for call in calls:
        with pytest.raises(StoreError) as raised:
            call()
        assert not isinstance(raised.value, NotFound)
    assert list(store.list("")) == []


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a//", "/a", "a/../", "ä", "a/./"])
def test_a_prefix_that_no_key_has_is_refused(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError):
        list(store.list(prefix))


def test_long_keys_are_kept(store: Store) -> None:
    key = "/".join(["k" * 127] * 4)
    store.put(key, b"x")
    assert store.get(key) == b"x"
    assert list(store.list("kkk")) == [key]


# ------------------------------------------------------------------------------------------- files


def test_files_go_up_and_down_to_the_bit(store: Store, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_001)
    (tmp_path / "source").write_bytes(data)
    store.upload("models/graph.pb", tmp_path / "source")
    assert store.get("models/graph.pb") == data
    store.download("models/graph.pb", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]


def test_upload_and_download_replace(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    store.put("a", b"an old and longer body")
    source.write_bytes(b"new")
    target.write_bytes(b"an old and longer file")
    store.upload("a", source)
    store.download("a", target)
    assert (store.get("a"), target.read_bytes()) == (b"new", b"new")


def test_a_file_that_cannot_be_read_or_written_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent"):
        store.upload("a", tmp_path / "absent")
    assert not store.exists("a")
    store.put("a", b"x")
    with pytest.raises(StoreError, match="nowhere"):
        store.download("a", tmp_path / "nowhere" / "x")


# ------------------------------------------------------------------------------------------- races


def together(count: int, work: Callable[[int], object]) -> None:
    """Run `work(0)` … `work(count - 1)` at the same moment; their errors are raised here."""
    ready, errors = threading.Barrier(count), []

    def run(number: int) -> None:
        ready.wait(10)
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


@pytest.mark.slow
def test_of_eight_creators_one_wins(store_factory: Connect) -> None:
    stores = [store_factory() for _ in range(8)]
    for round_ in range(20):
        key = f"claims/task-{round_}/1"
        winners: list[int] = []

        def create(number: int, key: str = key, winners: list[int] = winners) -> None:
            if stores[number].create(key, f"worker {number}".encode()):
                winners.append(number)

        together(8, create)
        assert len(winners) == 1
        assert stores[0].get(key) == f"worker {winners[0]}".encode()


def test_of_four_processes_one_wins_every_key(store_factory: Connect) -> None:
    def create_all(number: int) -> int:
        store = store_factory()
        return sum(store.create(f"claims/{i}/1", str(number).encode()) for i in range(30))

    children = [in_child(lambda n=number: create_all(n)) for number in range(4)]  # type: ignore[misc]
    wins = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sum(wins) == 30
    store = store_factory()
    owners = [store.get(f"claims/{i}/1") for i in range(30)]
    assert wins == [owners.count(str(number).encode()) for number in range(4)]


def goes_on(begun: float, seen: Sized) -> bool:
    """Whether readers and writers have not met for long, or often, enough."""
    passed = time.monotonic() - begun
    return passed < RACE or (len(seen) <= ENOUGH and passed < PATIENCE)


@pytest.mark.slow
def test_nobody_sees_a_torn_object(store_factory: Connect, tmp_path: Path) -> None:
    store_factory().put("pointer", signed(0))
    begun, reads = time.monotonic(), []

    def work(number: int) -> None:
        store, seed, file = store_factory(), number, tmp_path / str(number)
        while goes_on(begun, reads):
            seed += 10
            if number < 2:
                store.put("pointer", signed(seed))
            elif number == 2:
                file.write_bytes(signed(seed))
                store.upload("pointer", file)
            elif number == 3:
                store.download("pointer", file)
                reads.append(is_whole(file.read_bytes()))
            else:
                reads.append(is_whole(store.get("pointer")))

    together(6, work)
    assert len(reads) > ENOUGH
    assert all(reads)


@pytest.mark.slow
def test_what_is_listed_can_be_got(store_factory: Connect) -> None:
    begun, seen = time.monotonic(), set()

    def work(number: int) -> None:
        store, count = store_factory(), 0
        while goes_on(begun, seen):
            if number < 2:
                store.create(f"labels/{number}/{count}", signed(count))
                count += 1
            else:
                for key in list(store.list("labels/"))[-5:]:
                    assert is_whole(store.get(key))
                    seen.add(key)

    together(3, work)
    assert len(seen) > ENOUGH


# ------------------------------------------------------------------------------------------- kills


def in_child(work: Callable[[], int]) -> int:
    """Run `work` in a fork; its result becomes the exit status."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            status = work()
        finally:
            os._exit(status)
    return child


def write_for_ever(store: Store, round_: int) -> int:
    for number in range(10**9):
        body = signed(round_ * 1000 + number)
        store.create(f"created/{round_}/{number}", body)
        store.put("replaced", body)
    return 0


@pytest.mark.slow
def test_a_killed_writer_leaves_no_half_object(store_factory: Connect) -> None:
    store, chance = store_factory(), random.Random(11)
    store.put("replaced", signed(0))
    for round_ in range(12):
        child = in_child(lambda r=round_: write_for_ever(store_factory(), r))  # type: ignore[misc]
        while not store.exists(f"created/{round_}/0"):  # it is connected, and at work
            time.sleep(0.001)
        time.sleep(chance.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert is_whole(store.get("replaced"))
    keys = list(store.list(""))
    assert len(keys) > 12
    assert all(key == "replaced" or key.startswith("created/") for key in keys)
    assert all(is_whole(store.get(key)) for key in keys)
    numbers = [int(key.rpartition("/")[2]) for key in keys if key.startswith("created/0/")]
    assert sorted(numbers) == list(range(len(numbers)))
    assert store.create(f"created/0/{len(numbers)}", b"the next writer goes on") is True
