"""The S3 adapter against a real server that is killed, slow, mute or misled on the way."""

from __future__ import annotations

import os
import random
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from dpstream.deploy.devcluster.free_ports import free_ports
from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.shared.errors import DigestMismatch, Refused, StoreError
from dpstream.shared.ports import Store
from dpstream.shared.store.s3 import FORBID_OVERWRITE, IF_NONE_MATCH, S3Settings, S3Store
from tests.support.servers.faulty_s3 import Bucket, Proxy
from tests.support.servers.s3_server import BUCKET

BIG = 20_000_000


@pytest.fixture
def settings(seaweed: SeaweedServer) -> S3Settings:
    return seaweed.settings(BUCKET, f"tests/{uuid.uuid4().hex}")


@pytest.fixture
def proxy(seaweed: SeaweedServer) -> Iterator[Proxy]:
    proxy = Proxy(seaweed.endpoint)
    with proxy.serving() as url:
        proxy.url = url  # type: ignore[attr-defined]
        yield proxy


def through(proxy: Proxy, settings: S3Settings, **changes: object) -> S3Store:
    """A store behind the proxy, its probe done."""
    endpoint = {"endpoint": proxy.url}  # type: ignore[attr-defined]
    store = S3Store(settings.model_copy(update={**endpoint, **changes}))
    store.probe()
    proxy.seen.clear()
    return store


# ------------------------------------------------------------------------------------------ create


def test_threads_share_a_store_and_every_key_has_one_creator(s3_store: S3Store) -> None:
    keys = [f"claims/{n}/1" for n in range(20)]
    wins: dict[str, list[int]] = {key: [] for key in keys}

    def create_all(number: int) -> None:
        for key in random.Random(number).sample(keys, len(keys)):
            if s3_store.create(key, str(number).encode()):
                wins[key].append(number)

    threads = [threading.Thread(target=create_all, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {key: s3_store.get(key) for key in keys} == {
        key: str(winner).encode() for key, [winner] in wins.items()
    }
    assert list(s3_store.list("")) == sorted(keys)  # and nothing of the probe


def test_a_create_whose_answer_was_lost_is_told_right(proxy: Proxy, settings: S3Settings) -> None:
    store = through(proxy, settings)
    proxy.faults.append("lose")
    assert store.create("claims/t/1", b"mine") is True
    puts = [request for request in proxy.seen if request.startswith("PUT")]
    assert len(puts) == 2


def test_a_create_that_never_arrived_does_not_take_the_credit_of_another(
    proxy: Proxy, settings: S3Settings
) -> None:
    store = through(proxy, settings)
    assert S3Store(settings).create("claims/t/1", b"the same body") is True
    proxy.faults.append("swallow")
    assert store.create("claims/t/1", b"the same body") is False


def test_a_create_that_is_never_answered_is_an_error_not_a_guess(
    proxy: Proxy, settings: S3Settings
) -> None:
    store = through(proxy, settings, attempts=2)
    proxy.faults.extend(["lose"] * 2)
    with pytest.raises(StoreError, match=f"s3://{BUCKET}"):
        store.create("claims/t/1", b"mine")
    assert store.get("claims/t/1") == b"mine"
    assert store.create("claims/t/1", b"mine") is False


def test_a_conflict_decides_nothing_and_is_asked_again(proxy: Proxy, settings: S3Settings) -> None:
    store = through(proxy, settings)
    proxy.faults.extend(["409", "409"])
    assert store.create("claims/t/1", b"mine") is True
    assert store.create("claims/t/1", b"mine") is False


# ------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("size", [10_000, BIG])
def test_objects_of_any_size_come_back(
    proxy: Proxy, settings: S3Settings, tmp_path: Path, size: int
) -> None:
    store, data = through(proxy, settings), random.Random(size).randbytes(size)
    store.put("models/put", data)
    (tmp_path / "source").write_bytes(data)
    store.upload("models/uploaded", tmp_path / "source")
    for key in ("models/put", "models/uploaded"):
        assert store.get(key) == data
        store.download(key, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == data
    parts = [request for request in proxy.seen if "partNumber=" in request]
    assert len(parts) == (6 if size == BIG else 0)


def test_what_was_damaged_on_its_way_up_is_refused(
    proxy: Proxy, settings: S3Settings, tmp_path: Path
) -> None:
    store = through(proxy, settings)
    proxy.faults.append("flip")
    with pytest.raises(StoreError):
        store.put("a", b"x" * 1000)
    proxy.faults.append("flip")
    with pytest.raises(StoreError):
        store.create("a", b"x" * 1000)
    (tmp_path / "source").write_bytes(b"x" * BIG)
    proxy.faults.extend(["", "flip"])  # one of its parts
    with pytest.raises(StoreError):
        store.upload("a", tmp_path / "source")
    assert not store.exists("a")


def test_what_was_damaged_on_its_way_down_is_noticed(
    proxy: Proxy, settings: S3Settings, tmp_path: Path
) -> None:
    store = through(proxy, settings)
    store.put("a", b"x" * 1000)
    proxy.faults.extend(["spoil", "spoil"])
    with pytest.raises(DigestMismatch, match="/a: the content differs"):
        store.get("a")
    with pytest.raises(DigestMismatch):
        store.download("a", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
    assert store.get("a") == b"x" * 1000


def test_an_answer_cut_short_is_asked_for_again(proxy: Proxy, settings: S3Settings) -> None:
    store = through(proxy, settings)
    store.put("a", b"x" * 100_000)
    proxy.faults.extend(["cut", "cut"])
    assert store.get("a") == b"x" * 100_000


# ----------------------------------------------------------------------------------------- outages


def test_a_busy_server_is_asked_again(proxy: Proxy, settings: S3Settings) -> None:
    store = through(proxy, settings)
    proxy.faults.extend(["503", "503"])
    store.put("a", b"1")
    proxy.faults.append("503")
    assert store.get("a") == b"1"
    proxy.faults.append("503")
    assert list(store.list("")) == ["a"]
    proxy.faults.append("503")
    assert store.create("a", b"2") is False
    assert len(proxy.seen) == 3 + 2 + 2 + 3  # the last: refused, and whose is it


def test_a_silent_server_is_given_up_and_asked_again(proxy: Proxy, settings: S3Settings) -> None:
    store = through(proxy, settings, silence=Proxy.SLEEP / 3)
    store.put("a", b"1")
    proxy.faults.append("sleep")
    assert store.get("a") == b"1"
    impatient = through(proxy, settings, silence=Proxy.SLEEP / 3, attempts=1)
    proxy.faults.append("sleep")
    asked = time.monotonic()
    with pytest.raises(StoreError, match="Read timeout"):
        impatient.get("a")
    assert time.monotonic() - asked < Proxy.SLEEP


def test_a_killed_server_loses_nothing_it_acknowledged(
    seaweed: SeaweedServer, s3_store: S3Store
) -> None:
    """And the same store works again by itself."""
    acknowledged: list[str] = []
    enough = threading.Event()

    def write() -> None:
        number = 0
        while not enough.is_set():
            with suppress(StoreError):
                if s3_store.create(f"labels/{number}", str(number).encode()):
                    acknowledged.append(f"labels/{number}")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: len(acknowledged) >= 50)
        seaweed.kill()
        before = len(acknowledged)
        seaweed.start()
        wait_until(lambda: len(acknowledged) >= before + 5)
    finally:
        enough.set()
        writer.join(60)
    assert set(acknowledged) <= set(s3_store.list("labels/"))
    for key in acknowledged[before - 20 :]:
        assert s3_store.get(key) == key.removeprefix("labels/").encode()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ------------------------------------------------------------------------------------- who may what


def test_a_wrong_key_is_told_without_telling_it(settings: S3Settings) -> None:
    secret = "not-the-secret-0123456789"
    store = S3Store(settings.model_copy(update={"secret_key": SecretStr(secret)}))
    with pytest.raises(Refused, match=f"s3://{BUCKET}.* at http://.*SignatureDoesNotMatch") as told:
        store.probe()
    shown = "".join(traceback.format_exception(told.value)) + repr(store) + repr(store.settings)
    assert secret not in shown
    assert "***" in shown


def test_keys_come_from_the_standard_chain(
    settings: S3Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = settings.model_copy(update={"access_key": None, "secret_key": None})
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Refused, match="no credentials found"):
        S3Store(bare).probe()
    assert settings.access_key is not None
    assert settings.secret_key is not None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", settings.access_key.get_secret_value())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", settings.secret_key.get_secret_value())
    S3Store(bare).probe()


def test_a_missing_bucket_is_named(settings: S3Settings) -> None:
    store = S3Store(settings.model_copy(update={"bucket": "no-such-bucket"}))
    with pytest.raises(Refused, match=r"s3://no-such-bucket/.*NoSuchBucket"):
        store.probe()
    with pytest.raises(Refused, match="NoSuchBucket"):
        store.get("a")


def test_a_server_that_is_not_there_is_an_outage(settings: S3Settings) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    store = S3Store(settings.model_copy(update={"endpoint": nowhere, "attempts": 2}))
    with pytest.raises(StoreError, match=nowhere) as told:
        store.probe()
    assert not isinstance(told.value, Refused)


def test_nothing_outside_the_prefix_is_touched(seaweed: SeaweedServer) -> None:
    group = uuid.uuid4().hex
    mine, other, above = (
        S3Store(seaweed.settings(BUCKET, prefix))
        for prefix in (f"{group}/a", f"/{group}/a-b/", group)
    )
    for store in (mine, other):
        store.put("x", store.settings.prefix.encode())
    assert list(mine.list("")) == list(mine.list("x")) == ["x"]
    assert list(above.list("")) == ["a-b/x", "a/x"]
    for key in ("../a-b/x", "/x", "a/../../a-b/x", ".probe/x", "x/"):
        for call in (mine.delete, mine.get, mine.exists, mine.list):
            with pytest.raises(StoreError, match="is not a valid key"):
                call(key) if call != mine.list else call(key + "/")
    mine.delete("x")
    assert other.get("x") == f"{group}/a-b".encode()


def test_a_folder_is_no_object(s3_store: Store) -> None:
    s3_store.put("a/b", b"1")
    s3_store.delete("a")
    assert s3_store.get("a/b") == b"1"


@pytest.mark.parametrize(
    "wrong",
    [{"prefix": "a/../b"}, {"endpoint": "http://user:hunter2@host"}, {"endpoint": "ftp://x"}],
    ids=str,
)
def test_settings_that_cannot_be_right_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))) as told:
        S3Settings(bucket="b", **wrong)  # type: ignore[arg-type]
    assert "hunter2" not in str(told.value)


# ---------------------------------------------------------------------------------------- dialects


def in_memory(url: str, **changes: object) -> S3Settings:
    key = SecretStr("key")
    settings = S3Settings(
        bucket="oss", prefix="team", endpoint=url, access_key=key, secret_key=key, addressing="path"
    )
    return settings.model_copy(update=changes)


def test_the_probe_finds_the_header_of_oss() -> None:
    bucket = Bucket(forbids=True)
    with bucket.serving() as url:
        store = S3Store(in_memory(url))
        store.probe()
        assert bucket.objects == {}
        assert {path.split("/")[:4][-1] for _, path, _ in bucket.requests} == {".probe"}
        bucket.requests.clear()
        assert store.create("claims/t/1", b"1") is True
        assert store.create("claims/t/1", b"2") is False
        store.put("claims/t/1", b"3")
        assert store.get("claims/t/1") == b"3"
    create, put = bucket.requests[0][2], bucket.requests[3][2]
    assert create[FORBID_OVERWRITE] == "true"
    assert IF_NONE_MATCH.lower() not in create
    assert FORBID_OVERWRITE in create["authorization"]  # signed
    assert FORBID_OVERWRITE not in put


def test_a_store_that_replaces_whatever_is_asked_is_refused() -> None:
    bucket = Bucket(forbids=False)
    with bucket.serving() as url:
        store = S3Store(in_memory(url))
        with pytest.raises(Refused, match=f"s3://oss/team at {url}: the store overwrites"):
            store.probe()
        with pytest.raises(Refused):
            store.create("claims/t/1", b"1")
    assert bucket.objects == {}


def test_the_encryption_header_goes_with_every_write(tmp_path: Path) -> None:
    bucket = Bucket(forbids=True)
    (tmp_path / "file").write_bytes(b"3")
    with bucket.serving() as url:
        store = S3Store(in_memory(url, encryption="aws:kms"))
        store.put("a", b"1")
        store.create("b", b"2")
        store.upload("c", tmp_path / "file")
    asked = [h.get("x-amz-server-side-encryption") for m, _, h in bucket.requests if m == "PUT"]
    assert set(asked) == {"aws:kms"}


def test_a_bucket_may_be_part_of_the_hosts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OSS demands it. The proxy variable stands in for the name server."""
    bucket = Bucket(forbids=True)
    with bucket.serving() as url:
        monkeypatch.setenv("http_proxy", url)
        store = S3Store(in_memory("http://oss-cn-hangzhou.aliyuncs.com", addressing="virtual"))
        store.put("a", b"1")
    assert bucket.requests[0][1] == "http://oss.oss-cn-hangzhou.aliyuncs.com/team/a"


def test_a_real_server_is_addressed_both_ways(
    seaweed: SeaweedServer, settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    S3Store(settings).put("a", b"1")
    monkeypatch.setenv("http_proxy", seaweed.endpoint)
    named = {"endpoint": "http://localhost", "addressing": "virtual"}
    assert S3Store(settings.model_copy(update=named)).get("a") == b"1"
