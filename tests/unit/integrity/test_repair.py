"""A damaged campaign is repaired as far as possible, and goes on: with the bytes that were written
where they can be proved, else from before the damage."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dpstream.integrity.repair import Repair, plan, unflipped
from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger import snapshots
from dpstream.services.coordinator.ledger.chain import segment_uri
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    Segment,
    load_state,
    read_messages,
    read_segments,
)
from dpstream.shared import messages as m
from dpstream.shared.codec import decode, encode
from dpstream.shared.errors import SpecError
from dpstream.shared.proof import digest
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import TRAINED
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator
from tests.support.campaigns.coordinator import CoordinatorHarness, first_task, small
from tests.support.campaigns.damaged_campaign import (
    finished,
    half_way,
    of_ledger,
    repaired,
    resumed,
    segments,
    trainings,
)
from tests.support.campaigns.sample_ledger import NAME, write_half
from tests.support.campaigns.sample_messages import example
from tests.support.command_line import run_command
from tests.support.soak import examples

pytestmark = pytest.mark.usefixtures("no_log_lines")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "root")


def flip(store: FolderStore, key: str, bit: int = 1234) -> bytes:
    """Flips a bit; returns what was written."""
    written = store.get(key)
    data = bytearray(written)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    store.put(key, bytes(data))
    return written


# ------------------------------------------------------------------------------- exactly


@given(data=st.binary(min_size=1, max_size=200), bit=st.integers(0, 1599))
@examples(300, 50)
def test_a_flipped_bit_is_found(data: bytes, bit: int) -> None:
    flipped = bytearray(data)
    flipped[bit // 8 % len(data)] ^= 1 << bit % 8
    sha256 = hashlib.sha256(data).hexdigest()
    assert unflipped(bytes(flipped), sha256) == data
    assert unflipped(bytes(flipped) + b"x", sha256) is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 4, -1])
def test_a_flipped_bit_of_a_segment_is_corrected(store: FolderStore, number: int) -> None:
    half_way(store)
    before = load_state(store, "world")
    key = segments(store)[number]
    written = flip(store, key)
    planned = repaired(store)
    assert of_ledger(planned.recovered) == [f"{key}: one flipped bit corrected"]
    assert of_ledger(planned.lost) == []
    assert store.get(key) == written
    assert len(list(store.list("campaigns/world/damaged/ledger/"))) == 1
    assert load_state(store, "world") == before


def test_segments_are_restored_from_a_backup_one_by_one(store: FolderStore, tmp_path: Path) -> None:
    half_way(store)
    before = load_state(store, "world")
    backup, keys = FolderStore(tmp_path / "backup"), segments(store)[3:6]
    for key in keys:
        backup.put(key, store.get(key))
    for key in keys:
        store.put(key, b"garbage")
    planned = repaired(store, backup)
    assert sorted(of_ledger(planned.recovered)) == [f"{k}: restored from the backup" for k in keys]
    assert load_state(store, "world") == before


def test_a_backup_that_differs_is_not_used(store: FolderStore, tmp_path: Path) -> None:
    half_way(store)
    backup, key = FolderStore(tmp_path / "backup"), segments(store)[3]
    backup.put(key, store.get(segments(store)[4]))
    store.put(key, b"garbage")
    assert not any("backup" in line for line in repaired(store, backup).recovered)


def test_manifests_and_the_submission_are_written_again_from_the_ledger(store: FolderStore) -> None:
    half_way(store)
    manifest = next(iter(store.list("campaigns/world/manifests/")))
    written = flip(store, manifest)
    store.put("campaigns/world/submitted.json", b"{}")
    planned = plan(store, "world")
    planned.write()
    assert store.get(manifest) == written
    lines = [line for line in planned.recovered if "from the ledger" in line]
    assert len(lines) == 2
    assert not [each for each in verify(store, "world").damage if "submitted" in each.key]


def test_a_damaged_snapshot_is_set_aside(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 5)
    harness = half_way(store)
    key = snapshots.listed(store, "world")[-1]
    flip(store, key)
    planned = plan(store, "world")
    assert [line for line in planned.damaged if key in line]
    planned.write()
    assert not store.exists(key)
    assert any("/snapshots/" in key for key in store.list("campaigns/world/damaged/"))
    harness.restart().open_all()
    assert harness.finish().finished


# ------------------------------------------------------------------------------- from before


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_a_campaign_goes_on_without_a_lost_segment(store: FolderStore, number: int) -> None:
    """Whatever it contained: the submission, labels, trainings or selections."""
    half_way(store)
    undisturbed = FolderStore(store.root.parent / "undisturbed")
    half_way(undisturbed).finish()
    before = trainings(store)
    store.delete(segment_uri("world", number, 1))
    planned = repaired(store)
    assert len(of_ledger(planned.lost)) == 1
    assert f"segment {number} of the ledger" in of_ledger(planned.lost)[0]
    state = finished(resumed(store))
    assert state.finished is not None
    assert set(frames_of(state)) == set(frames_of(load_state(undisturbed, "world")))
    after = trainings(store)
    assert {member: after[member] for member in before} == before, "no training was repeated"


def trained_segment(store: FolderStore) -> Segment:
    """The first one with the result of a training."""
    return next(
        segment
        for segment in read_segments(store, "world")
        if any(isinstance(entry.event, m.MemberTrained) for entry in segment.entries)
    )


def test_a_training_is_repeated_only_if_its_event_is_nowhere(store: FolderStore) -> None:
    half_way(store)
    trained = trained_segment(store)
    for key in list(store.list("campaigns/world/results/")):
        store.delete(key)
    store.delete(segment_uri("world", trained.seq, trained.epoch))
    assert "0 trainings" in of_ledger(repaired(store).recovered)[0]
    assert finished(resumed(store)).finished
    assert 2 in trainings(store).values()


@pytest.mark.slow
@pytest.mark.parametrize("planted", [None, "another path", "no proof", "wrong proof", "no claim"])
def test_a_stored_training_counts_from_the_worker_that_has_claimed_it(
    store: FolderStore, planted: str | None
) -> None:
    """Every worker can create results, also those of trainings that are not its own."""
    half_way(store)
    secret, trained = "a fresh one", trained_segment(store)
    for key in [key for key in store.list("campaigns/world/results/") if key.endswith(TRAINED)]:
        task, attempt, _ = key.removeprefix("campaigns/world/results/").split("/")
        claim = example(m.TaskClaimed).model_copy(update={"proof_sha256": digest(digest(secret))})
        store.put(claim_uri("world", task, int(attempt)), encode(claim))
        proof = {"no proof": b"", "wrong proof": secret.encode()}.get(planted or "")
        body = store.get(key) + b"\n" + (digest(secret).encode() if proof is None else proof)
        store.delete(key)
        store.put(key.replace(task, "another") if planted == "another path" else key, body)
        if planted == "no claim":
            store.delete(claim_uri("world", task, int(attempt)))
    store.delete(segment_uri("world", trained.seq, trained.epoch))
    found = of_ledger(repaired(store).recovered)[0]
    assert ("0 trainings" in found) == (planted is not None)


def test_a_stored_training_replaces_no_recorded_one(store: FolderStore) -> None:
    half_way(store)
    before = [each for each in read_messages(store, "world") if isinstance(each, m.MemberTrained)]
    for key in list(store.list("campaigns/world/results/")):
        command, event = map(decode, store.get(key).splitlines())
        later = {"attempt": 5, "id": f"planted-{event.id}"}
        body = b"\n".join(encode(each.model_copy(update=later)) for each in (command, event))
        store.delete(key)
        store.put(key.replace(f"/{event.attempt}/", "/5/"), body)
        claim = example(m.TaskClaimed)
        store.put(claim_uri("world", event.task, 5), encode(claim))
    store.delete(segment_uri("world", 1, 1))
    repaired(store)
    assert finished(resumed(store)).finished
    after = {each.id for each in read_messages(store, "world") if isinstance(each, m.MemberTrained)}
    assert after >= {each.id for each in before}
    assert not [each for each in after if each.startswith("planted")]


@pytest.mark.parametrize("left", [0, 3, -1])
def test_a_cut_tail_is_worked_off_again(store: FolderStore, left: int) -> None:
    half_way(store)
    for key in segments(store)[left:]:
        store.delete(key)
    repaired(store)
    assert finished(resumed(store)).finished


def known_to_snapshots_alone(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign half way; beside its ledger, only snapshots know the members of its committee."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 5)
    half_way(store)
    for key in list(store.list("campaigns/world/results/")):
        store.delete(key)


def test_a_hole_behind_a_snapshot_is_repaired(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_to_snapshots_alone(store, monkeypatch)
    store.delete(segment_uri("world", 3, 1))
    repaired(store)
    assert finished(resumed(store)).finished


def test_a_repair_that_was_interrupted_finds_the_trainings_of_snapshots_again(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_to_snapshots_alone(store, monkeypatch)
    trained = next(
        segment.seq
        for segment in read_segments(store, "world")
        if any(isinstance(entry.event, m.MemberTrained) for entry in segment.entries)
    )
    store.delete(segment_uri("world", trained, 1))
    planned = plan(store, "world")
    (found,) = of_trainings(planned)
    assert " 0 trainings" not in found

    class Interrupted(Exception):
        pass

    def interrupted(key: str) -> None:
        delete(key)
        if "/snapshots/" in key:
            raise Interrupted

    delete = store.delete
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "delete", interrupted)
        with pytest.raises(Interrupted):
            planned.write()
    again = plan(store, "world")
    assert of_trainings(again) == [found]
    again.write()
    assert finished(resumed(store)).finished


def of_trainings(repair: Repair) -> list[str]:
    return [line for line in repair.recovered if "trainings found beside it" in line]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_later_results_outlast_snapshots_and_restarts(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    half_way(store)
    before = trainings(store)
    store.delete(segment_uri("world", number, 1))
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY", 1)
    monkeypatch.setattr(snapshots, "ENTRIES_PER_EVENT", 10_000)
    repaired(store)
    harness = resumed(store)
    for _ in range(20):
        harness.step()
        harness.restart().open_all()
        harness.work()
    assert finished(harness).finished
    after = trainings(store)
    assert {member: after[member] for member in before} == before, "no training was repeated"


def test_a_repaired_ledger_is_read_about_once(store: FolderStore) -> None:
    half_way(store)
    store.delete(segment_uri("world", 2, 1))
    repaired(store)
    assert finished(resumed(store)).finished
    read = Counter[str]()

    class Counting(FolderStore):
        def get(self, key: str, most: int | None = None) -> bytes:
            read[key] += 1
            return super().get(key, most)

    Ledger.open(Counting(store.root), "world")
    again = [key for key in segments(store) if read[key] > 1]
    assert len(again) == 1, "where the new chain begins"


def test_what_was_repaired_is_repaired_again(store: FolderStore) -> None:
    half_way(store)
    store.delete(segment_uri("world", 3, 1))
    repaired(store)
    assert of_ledger(plan(store, "world").damaged) == []
    store.delete(segments(store)[-1])
    repaired(store)
    assert finished(resumed(store)).finished


def test_an_ended_campaign_whose_end_is_lost_is_open_again(store: FolderStore) -> None:
    harness = CoordinatorHarness(store)
    harness.submit(small())
    assert harness.finish().finished
    store.delete(segment_uri("world", 4, 1))
    repaired(store)
    assert not store.exists("campaigns/world/finished.json")
    assert finished(resumed(store)).finished


def test_two_repairs_at_once_do_not_mix(store: FolderStore) -> None:
    half_way(store)
    store.delete(segment_uri("world", 3, 1))
    first, second = plan(store, "world"), plan(store, "world")
    first.write()
    with pytest.raises(Exception, match="meanwhile; repair again"):
        second.write()
    assert finished(resumed(store)).finished


def test_without_the_spec_nothing_goes_on(store: FolderStore) -> None:
    half_way(store)
    store.put("campaigns/world/spec.json", b"garbage")
    store.delete(segment_uri("world", 3, 1))
    with pytest.raises(SpecError, match=r"spec\.json.*restore it first"):
        plan(store, "world")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign half way, with snapshots."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patched, capture_logs():
        patched.setattr(snapshots, "SNAPSHOT_EVERY", 5)
        half_way(FolderStore(folder))
    return folder


WAYS = st.sampled_from(["flip", "cut", "delete", "empty", "change"])


@pytest.mark.slow
@given(hits=st.lists(st.tuples(st.integers(0, 99), WAYS), min_size=1, max_size=4))
@examples(100, 3)
def test_whatever_is_damaged_in_the_ledger_the_campaign_comes_to_its_end(
    sound: Path, hits: list[tuple[int, str]]
) -> None:
    with TemporaryDirectory() as folder:
        store = FolderStore(Path(shutil.copytree(sound, folder, dirs_exist_ok=True)))
        places = ("ledger", "snapshots", "manifests", "heads")
        keys = [key for place in places for key in store.list(f"campaigns/world/{place}")]
        for number, way in hits:
            _damage(store, keys[number % len(keys)], way)
        plan(store, "world").write()
        found = verify(store, "world")
        assert found.ledger.damage == {}
        assert not [each for each in found.damage if "/snapshots/" in each.key]
        harness = CoordinatorHarness(store)
        harness.coordinator.open_all()
        assert harness.coordinator.broken == {}
        harness.publish(example(m.CampaignResumed).model_copy(update={"campaign": "world"}))
        assert finished(harness).finished


def _damage(store: FolderStore, key: str, way: str) -> None:
    if not store.exists(key):
        return
    data = store.get(key)
    if way == "delete":
        store.delete(key)
    elif way == "flip" and data:
        flip(store, key)
    elif way == "change":
        store.put(key, data.replace(b"1", b"2"))
    else:
        store.put(key, data[: len(data) // 2] if way == "cut" else b"")


def test_an_earlier_result_counts_only_for_the_same_work(store: FolderStore) -> None:
    open_campaign, command = first_task(CoordinatorHarness(store))
    *_, result = CampaignSimulator().answer(command)
    again = command.model_copy(update={"attempt": 3, "time": 7.0, "id": "again"})
    for former, expected in [
        (command, [result]),
        (command.model_copy(update={"max_seconds": 1.0}), []),
        (None, []),
    ]:
        open_campaign.early = {command.task: [result]}
        open_campaign.ledger.former = {} if former is None else {command.task: former}
        assert open_campaign._results_of(again) == expected
        assert open_campaign.early == {}


# ------------------------------------------------------------------------------- the commands


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.setenv("COLUMNS", "300")
    return write_half(tmp_path / "root")


def test_verify_compares_every_object(
    sample: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("verify", NAME, "--store", sample.root)
    status, out, _ = run_command(monkeypatch, capsys, *words)
    assert (status, f"{NAME}: no damage" in out) == (0, True), out
    assert "ledger: 1 segments, " in out
    assert "3 more exist" in out
    damaged = ["campaigns/told/results/train-0.pb", next(iter(sample.list("labels/")))]
    for key in damaged:
        flip(sample, key, 100)
    sample.delete("campaigns/told/results/frames.npz")
    status, out, _ = run_command(monkeypatch, capsys, *words)
    assert status == 1
    for key in damaged:
        assert f"damaged: {key}: the content differs from what was written" in out
    assert "frames.npz: missing" in out
    assert f"{NAME}: 3 damaged; next: dpstream repair {NAME}" in out


def test_verify_deep_reads_trajectories(
    sample: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(sample, "campaigns/told/results/frames.npz")
    words = ("verify", NAME, "--store", sample.root)
    assert run_command(monkeypatch, capsys, *words)[0] == 0
    status, out, _ = run_command(monkeypatch, capsys, *words, "--deep")
    assert status == 1
    assert "frames.npz: the content differs" in out


def test_repair_changes_nothing_unless_asked_twice(
    sample: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = flip(sample, "campaigns/told/results/train-0.pb", 100)
    before = {key: sample.get(key) for key in sample.list("")}
    words = ("repair", NAME, "--store", sample.root)
    status, out, _ = run_command(monkeypatch, capsys, *words)
    assert status == 0
    assert "recoverable: campaigns/told/results/train-0.pb: one flipped bit corrected" in out
    assert "nothing was changed" in out
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    run_command(monkeypatch, capsys, *words, "--apply")
    assert {k: v for k, v in _contents(sample).items() if not k.endswith("lock")} == before
    status, out, _ = run_command(monkeypatch, capsys, *words, "--apply", "--yes")
    assert (status, "repaired" in out) == (0, True)
    assert sample.get("campaigns/told/results/train-0.pb") == written
    assert run_command(monkeypatch, capsys, *words)[1].strip() == f"{NAME}: no damage"


def test_repair_names_what_is_lost(
    sample: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    label = next(iter(sample.list("labels/")))
    sample.delete(label)
    status, out, _ = run_command(monkeypatch, capsys, "repair", NAME, "--store", sample.root)
    assert status == 1
    assert f"lost: {label}: trainings that need this label fail" in out


def test_verify_checks_an_export(
    sample: FolderStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    where = ("--store", sample.root)
    assert run_command(monkeypatch, capsys, "export", NAME, *where, "-o", out)[0] == 0
    words = ("verify", NAME, *where, "--export", out)
    assert run_command(monkeypatch, capsys, *words)[0] == 0
    (out / "models" / "committee-0.pb").write_bytes(b"another")
    (out / "report.html").unlink()
    status, printed, _ = run_command(monkeypatch, capsys, *words)
    assert status == 1
    assert f"damaged: {out / 'models' / 'committee-0.pb'}: the content differs" in printed
    assert f"damaged: {out / 'report.html'}: missing" in printed
    status, _, error = run_command(monkeypatch, capsys, "verify", NAME, *where, "--export", "none")
    assert (status, "none/SHA256SUMS" in error) == (2, True)


def _contents(store: FolderStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list("")}
