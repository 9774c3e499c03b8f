"""Frames that external generators offer: what the policy makes of them, whatever the deliveries,
and what the judge makes of their bytes."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.coordinator.apply.proposals import FINAL_VERDICTS
from dpstream.services.coordinator.ledger.ledger import Ledger, LedgerEntry
from dpstream.services.coordinator.task_queue import TaskQueue
from dpstream.services.coordinator.views.why import why
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.screen import screen
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import Batch, canonical, frame_key, from_ase
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import MAX_BODY, decode, encode
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import OfferedFrame, Ref, campaign_uri, is_offered
from tests.support.campaign_simulator import CampaignSimulator, offered_key, spec
from tests.support.lossy_delivery import (
    LossyDelivery,
    check_counters,
    check_snapshot,
    replayed,
    resumed,
)
from tests.support.soak import examples

SEEDS = st.integers(0, 2**32)
PLENTY = {"per_round": 60, "select_every": 2}
FINAL = {*FINAL_VERDICTS, "duplicate", "refused"}


def frames(*numbers: float, species: str = "H") -> tuple[OfferedFrame, ...]:
    return tuple(OfferedFrame(species=(species,), positions=((n, 0.0, 0.0),)) for n in numbers)


def proposed(correlation: str = "first", **changes: Any) -> m.StructuresProposed:
    fields: dict[str, Any] = {
        "id": f"{correlation}-message",
        "campaign": "world",
        "time": 100.0,
        "generator": "ga",
        "correlation": correlation,
        "frames": frames(1.0, 2.0, 3.0),
    }
    return m.StructuresProposed(**{**fields, **changes})


def told(storm: LossyDelivery, correlation: str = "first") -> dict[int, list[str]]:
    """The verdicts on each frame, in their order."""
    words: dict[int, list[str]] = {}
    for judged in storm.said(m.StructuresJudged):
        if judged.correlation == correlation:
            for word in judged.verdicts:
                words.setdefault(word.index, []).append(word.verdict)
    return words


def refusals(storm: LossyDelivery) -> list[str]:
    return [judged.refused for judged in storm.said(m.StructuresJudged) if judged.refused]


def after_first_committee(storm: LossyDelivery) -> LossyDelivery:
    storm.until(lambda state: state.committee.version)
    return storm


# ------------------------------------------------------------------------------- whatever comes


def offers() -> list[m.StructuresProposed]:
    """Three generators' worth, with an alien frame and no frame offered twice."""
    return [
        proposed("a", frames=(*frames(1.0, 2.0), *frames(3.0, species="Ar"))),
        proposed("b", frames=frames(4.0, 5.0), generator="pso", priority=3),
        proposed("c", frames=frames(6.0), mode="label"),
        proposed("d", frames=frames(7.0, 8.0, 9.0), mode="label", priority=-2),
    ]


def with_offers(mode: str, seed: int | None = None, faults: float = 0.0) -> LossyDelivery:
    """The proposals are heard before the campaign begins, and once more at any time."""
    world = CampaignSimulator(reject=lambda key: key[0] in "34")
    storm = LossyDelivery(world, spec(mode=mode), seed, faults)
    again = offers()
    if seed is not None:
        storm.random.shuffle(again)
    for offer in again:
        storm.hear(offer)
    storm.events += offers()
    return storm


@examples(8, usual=4)
@given(SEEDS)
def test_lockstep_ends_in_the_same_state_with_offers_in_the_storm(seed: int) -> None:
    calm, stormy = with_offers("lockstep"), with_offers("lockstep", seed)
    assert calm.run().finished is not None
    stormy.run(check_counters)
    assert stormy.state.dumps() == calm.state.dumps()
    assert told(stormy, "a") == told(calm, "a")


@examples(15, usual=6)
@given(SEEDS, st.sampled_from(["lockstep", "streaming"]), st.sampled_from([0.0, 0.1, 0.4]))
def test_every_offered_frame_gets_one_last_word(seed: int, mode: str, faults: float) -> None:
    storm = with_offers(mode, seed, faults)
    state = storm.run(check_counters)
    for number in range(50):
        if state.paused is None:
            break
        storm.events.append(resumed(number))
        state = storm.run(check_counters)
    assert state.finished is not None
    assert not state.proposals.waiting
    assert not state.proposals.offers
    refused = Counter(j.correlation for j in storm.said(m.StructuresJudged) if j.refused)
    for offer in offers():
        if refused[offer.correlation]:  # its judge was given up
            assert refused[offer.correlation] == 1
            assert told(storm, offer.correlation) == {}
            continue
        words = told(storm, offer.correlation)
        assert set(words) == set(range(len(offer.frames)))
        for said in words.values():
            assert [word for word in said if word in FINAL] == said[-1:], said
            assert said.count("candidate") <= 1
    assert replayed(storm.state.spec, storm.ledger).dumps() == state.dumps()


def test_candidates_of_a_generator_are_labelled_and_trained_on() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec(selection=PLENTY)))
    storm.hear(proposed())
    state = storm.run(check_counters)
    assert set(map(tuple, told(storm).values())) == {("candidate", "labelled")}
    bought = [f for f in state.labels.frames.values() if is_offered(f.origin)]
    assert {f.origin for f in bought} == {f"generator:ga/first/{n}" for n in range(3)}
    learned = {
        label["uri"]
        for frozen in storm.said(m.ManifestFrozen)
        if frozen.purpose == "dataset"
        for label in json.loads(frozen.body)["labels"]
    }
    assert {frame.label.uri for frame in bought if frame.label} <= learned


def test_the_energy_is_told_with_the_label() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    storm.hear(proposed(mode="label"))
    storm.until(lambda state: state.proposals.labels)
    (command,) = (c for c in storm.issued if isinstance(c, m.Label) and "ga" in _owners(storm, c))
    storm.hold(m.Label)
    _, done = storm.world.answer(command)
    assert isinstance(done, m.LabelsDone)
    accepted = tuple(a.model_copy(update={"energy": -1.5}) for a in done.accepted)
    decided = storm.hear(done.model_copy(update={"accepted": accepted}))
    (judged,) = (d for d in decided if isinstance(d, m.StructuresJudged))
    assert {word.energy for word in judged.verdicts} == {-1.5}
    assert judged.correlation == "first"


def _owners(storm: LossyDelivery, command: m.Label) -> set[str]:
    origins = [storm.state.labels.frames[ref.key].origin for ref in command.frames]
    return {origin.split(":")[1].split("/")[0] for origin in origins if is_offered(origin)}


def test_what_the_committee_is_sure_of_is_not_labelled() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(ripe=0), spec()))
    storm.hear(proposed())
    state = storm.run(check_counters)
    assert set(map(tuple, told(storm).values())) == {("accurate",)}
    assert not any(is_offered(f.origin) for f in state.labels.frames.values())


def test_a_candidate_that_a_newer_committee_is_sure_of_is_given_up() -> None:
    of = spec(selection={"per_round": 1, "select_every": 2})
    storm = after_first_committee(LossyDelivery(CampaignSimulator(ripe=2), of))
    storm.hear(proposed())
    storm.run(check_counters)
    endings = Counter(words[-1] for words in told(storm).values())
    assert endings["accurate"] >= 2
    assert endings.total() == 3
    versions = {j.version for j in storm.said(m.StructuresJudged) if j.version}
    assert versions == {2}


def test_known_frames_are_duplicates() -> None:
    storm = after_first_committee(
        LossyDelivery(CampaignSimulator(), spec(mode="streaming", selection=PLENTY))
    )
    storm.hear(proposed())
    storm.until(lambda state: len(state.proposals.offers) == 3)
    storm.hear(proposed("second", frames=frames(2.0, 5.0)))
    storm.until(lambda state: len(state.proposals.offers) == 4)
    assert told(storm, "second") == {0: ["duplicate"], 1: ["candidate"]}
    storm.until(lambda state: offered_key(frames(1.0)[0]) in state.labels.frames)
    storm.run()
    assert all(words[-1] in FINAL for words in told(storm).values())


def test_the_same_proposal_again_changes_nothing() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    storm.hear(proposed())
    before = storm.state
    assert storm.hear(proposed(id="another", time=5000.0, priority=7)) == ()
    assert storm.state is before
    storm.run()
    after = storm.state
    assert storm.hear(proposed()) == ()
    assert storm.state is after
    assert storm.hear(proposed("other")) != ()


# ------------------------------------------------------------------------------- not in the way


def test_streaming_waits_for_no_label_that_a_generator_asked_for() -> None:
    storm = LossyDelivery(CampaignSimulator(), spec(mode="streaming"))
    storm.hear(proposed(mode="label"))
    held = [c for c in _held_labels(storm) if "ga" in _owners(storm, c)]
    assert len(held) == 1
    assert storm.state.labels.proposed == 3
    assert storm.state.awaited == storm.state.labels.pending - 3
    storm.until(lambda state: storm.said(m.RoundJudged))
    assert storm.state.labels.proposed == 3
    storm.commands += held
    assert storm.run(check_counters).finished is not None
    assert set(map(tuple, told(storm).values())) == {("candidate", "labelled")}


def _held_labels(storm: LossyDelivery) -> list[m.Label]:
    """Run until the generator's labels are asked for, and take those tasks away."""
    storm.until(lambda state: state.labels.proposed and not state.labels.waiting)
    held = [c for c in storm.commands if isinstance(c, m.Label) and _owners(storm, c)]
    storm.commands = [c for c in storm.commands if c not in held]
    return held


def test_in_lockstep_offers_join_with_the_next_round() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec()))
    assert storm.state.exploration.round is not None
    storm.hear(proposed())
    storm.hear(proposed("straight", frames=frames(11.0), mode="label"))
    storm.until(lambda state: state.exploration.round is None)
    assert storm.said(m.Screen) == []
    storm.until(lambda state: state.exploration.round is not None)
    assert {command.version for command in storm.said(m.Screen)} == {0, 2}
    held = storm.hold(m.Screen)
    with pytest.raises(AssertionError, match="nothing is under way"):
        storm.until(lambda state: state.alive(m.Select))  # the round selects with them or not yet
    storm.commands += held
    assert storm.run(check_counters).finished is not None


def test_rejected_offers_do_not_count_against_a_stage() -> None:
    reject = {offered_key(frame) for frame in frames(*map(float, range(40)))}
    of = spec(selection=PLENTY)
    storm = after_first_committee(LossyDelivery(CampaignSimulator(reject=reject.__contains__), of))
    storm.hear(proposed(frames=frames(*map(float, range(20)))))
    storm.hear(proposed("b", frames=frames(*map(float, range(20, 40))), mode="label"))
    state = storm.run(check_counters)
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    assert {words[-1] for words in told(storm).values()} == {"rejected"}
    for judged in storm.said(m.RoundJudged):
        assert not any(is_offered(name) for name in judged.counts)


def test_a_generator_shares_no_label_task_and_urgent_ones_go_first() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    storm.hold(m.Explore)
    storm.hear(proposed("late", frames=frames(1.0), mode="label", priority=-1))
    storm.hear(proposed("soon", frames=frames(2.0), mode="label", priority=5))
    storm.hear(proposed("pso", frames=frames(3.0), mode="label", generator="pso"))
    for command in storm.hold(m.Screen):
        for result in storm.take(command):
            storm.hear(result)
    labels = [c for c in storm.issued if isinstance(c, m.Label) and _owners(storm, c)]
    assert [len(_owners(storm, command)) for command in labels] == [1, 1, 1]
    assert {command.priority for command in labels} == {-1, 0, 5}
    bus, task_queue = InProcessBus(), TaskQueue(600.0)
    for command in labels:
        task_queue.add(command, 0.0)
    task_queue.publish(bus, 0.0, 1)
    line = bus.consume("label.tblite", prefetch=10)
    priorities = [decode(cast(Any, line.next(0.0)).body).priority for _ in labels]
    assert priorities == [5, 0, -1]


def test_when_a_campaign_ends_the_rest_hears_of_it() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    storm.hear(proposed())
    storm.until(lambda state: state.proposals.offers)
    storm.hear(proposed("unjudged"))
    storm.hear(m.CampaignCancelled(id="enough", campaign="world", time=9.0))
    assert {words[-1] for words in told(storm).values()} == {"dropped"}
    assert refusals(storm) == ["the campaign has ended"]
    storm.hear(proposed("too-late"))
    assert refusals(storm) == ["the campaign has ended"] * 2
    storm.run()
    assert not storm.state.proposals.waiting


def test_a_judge_that_gives_up_is_a_refusal() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    storm.hear(proposed())
    (command,) = storm.hold(m.Screen)
    failed = CampaignSimulator.envelope(command, "ending")
    storm.hear(m.TaskFailed(**failed, permanent=True, reason="no such model"))
    assert refusals(storm) == ["abandoned after 1 attempt: no such model"]
    assert not storm.state.proposals.waiting


# ------------------------------------------------------------------------------- bounds


def batch(name: str = "x.npz", **changes: Any) -> dict[str, Any]:
    uri = campaign_uri("world", "proposals", name)
    return {"frames": (), "batch": Ref.to(uri, b"abc"), "count": 2, **changes}


@pytest.mark.parametrize(
    ("limits", "changes", "why"),
    [
        ({"enabled": False}, {}, "the campaign does not accept proposals"),
        ({}, {"frames": ()}, "a proposal contains either frames or a batch"),
        ({}, batch(frames=frames(1.0)), "a proposal contains either frames or a batch"),
        ({}, batch(count=0), "count must be the number of frames in the batch"),
        ({}, batch(count=101), "101 frames in one message; the limit is 100"),
        ({"max_frames": 2}, {}, "3 frames in one message; the limit is 2"),
        (
            {},
            batch("x.pckl"),
            "the batch must be a .npz or .extxyz object under campaigns/world/proposals/",
        ),
        (
            {},
            {**batch(), "batch": Ref.to("campaigns/other/proposals/x.npz", b"abc")},
            "the batch must be a .npz or .extxyz object under campaigns/world/proposals/",
        ),
        ({"max_bytes": 2}, batch(), "the batch has 3 bytes; the limit is 2"),
        ({"frames_per_hour": 2}, {}, "more than 2 frames in one hour; try again later"),
        (
            {"outstanding": 2},
            {},
            "3 frames are waiting to be judged; the limit is 2; try again later",
        ),
    ],
)
def test_refused_at_once(limits: dict[str, Any], changes: dict[str, Any], why: str) -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec(proposals=limits)))
    storm.hear(proposed(**changes))
    assert refusals(storm) == [why]
    (judged,) = storm.said(m.StructuresJudged)
    assert (judged.correlation, judged.generator) == ("first", "ga")
    assert storm.said(m.Screen) == []
    assert not storm.state.proposals.waiting


def test_the_hour_and_the_generator_bound_the_rate() -> None:
    storm = after_first_committee(
        LossyDelivery(CampaignSimulator(), spec(proposals={"frames_per_hour": 4}))
    )

    def offer(correlation: str, **changes: Any) -> int:
        before = len(refusals(storm))
        storm.hear(proposed(correlation, **changes))
        return len(refusals(storm)) - before

    assert offer("a") == 0
    assert offer("b") == 1
    assert offer("c", generator="pso") == 0
    assert offer("d", time=3700.0) == 0
    assert offer("e", time=3800.0) == 1
    assert offer("f", time=100.0) == 1  # a clock that goes back opens nothing


def test_the_budgets_bound_what_generators_buy() -> None:
    of = spec(mode="streaming", proposals={"labels": 2})
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), of))
    storm.hear(proposed(mode="label"))
    storm.run(check_counters)
    words = told(storm)
    assert sorted(words.values()) == [["candidate", "labelled"]] * 2 + [["refused"]]
    assert storm.state.proposals.labels == 2


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_unreadable_frames_are_kept_as_such(words: list[str]) -> None:
    document = json.loads(encode(proposed()))
    document["frames"] = [{"species": words, "positions": words}, words, None]
    event = decode(json.dumps(document).encode())
    assert all(frame.malformed.startswith("malformed: ") for frame in event.frames)
    assert decode(encode(event)) == event


# ------------------------------------------------------------------------------- the judge


CH4 = molecule("CH4")


class Desk:
    """A campaign's store and the judge's command over one object in it. No committee: nothing
    here needs an engine."""

    def __init__(self, root: Path, **limits: Any) -> None:
        self.root, self.store = root, FolderStore(root / "store")
        of = Spec.model_validate({**spec().model_dump(), "proposals": limits})
        self.spec = self.put("campaigns/world/spec.json", of.model_dump_json().encode())

    def put(self, uri: str, data: bytes) -> Ref:
        self.store.put(uri, data)
        return Ref.to(uri, data)

    def screen(self, offered: Ref, count: int, first: int = 0) -> m.StructuresScreened:
        command = m.Screen(
            id="i",
            campaign="world",
            time=0.0,
            task=f"t{len(list(self.root.iterdir()))}",
            title="",
            max_seconds=60.0,
            spec=self.spec,
            proposal="p",
            frames=offered,
            count=count,
            first=first,
        )
        scratch = self.root / command.task
        scratch.mkdir()
        context = Context(self.store, InProcessBus(), command, scratch, "w", threading.Event())
        result = screen(cast(ExplorerResources, None), command, context)
        assert len(encode(result)) < MAX_BODY
        return result

    def bytes(self, data: bytes, name: str, count: int) -> m.StructuresScreened:
        return self.screen(self.put(campaign_uri("world", "proposals", name), data), count)

    def written(self, *offered: OfferedFrame, first: int = 0) -> m.StructuresScreened:
        body = {"frames": [frame.model_dump(mode="json") for frame in offered]}
        return self.screen(self.put("f.json", json.dumps(body).encode()), len(offered), first)


def offered(atoms: Atoms, **changes: Any) -> OfferedFrame:
    document = {
        "species": atoms.get_chemical_symbols(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell[:].tolist() if atoms.pbc.all() else None,
    }
    return OfferedFrame.model_validate({**document, **changes})


def extxyz(*atoms: Atoms) -> bytes:
    text = io.StringIO()
    write(text, list(atoms), format="extxyz")
    return text.getvalue().encode()


def test_a_verdict_on_every_kind_of_bad_frame(tmp_path: Path) -> None:
    close = CH4.copy()
    close.positions[1] = close.positions[0] + 0.1
    flat = Atoms("H2", [[0, 0, 0], [0, 0, 1]], cell=[5, 5, 0], pbc=True)
    rows = CH4.positions.tolist()
    cases = {
        "malformed: positions have shape (4, 3), expected (5, 3)": offered(CH4, positions=rows[:4]),
        "malformed: setting an array element with a sequence": offered(
            CH4, positions=[[0], [1, 2]]
        ),
        "malformed: positions are to be three numbers": offered(CH4, positions=[[0] * 15]),
        "malformed: species: ": OfferedFrame.model_validate({"species": 5}),
        "coordinates must be finite": offered(CH4, positions=[[float("nan")] * 3, *rows[1:]]),
        "element 'Ar' is not in type_map (H, C)": offered(Atoms("Ar")),
        "0 atoms; allowed: 1 to 6": OfferedFrame(),
        "7 atoms; allowed: 1 to 6": offered(Atoms("H7", np.eye(7)[:, :3] * 9)),
        "C-H too close": offered(close),
        "the cell vectors must be right-handed": offered(flat),
        "cell has shape (2, 3)": offered(CH4, cell=[[1, 0, 0], [0, 1, 0]]),
    }
    result = Desk(tmp_path, max_atoms=6).written(
        *cases.values(), offered(CH4), offered(CH4), first=5
    )
    refused, (good, again) = result.found[:-2], result.found[-2:]
    assert [word.index for word in result.found] == list(range(5, 5 + len(cases) + 2))
    for word, reason in zip(refused, cases, strict=True):
        assert word.verdict == "refused"
        assert reason in word.reason
        assert len(word.reason) <= 100
    assert (good.verdict, good.row) == ("candidate", 0)
    assert (again.verdict, again.row) == ("duplicate", None)
    assert again.reason == f"the same as frame {good.index} of the proposal"
    stored = Batch.loads(FolderStore(tmp_path / "store").get(result.batches[0].uri))
    assert frame_key(stored[0]) == good.key == frame_key(canonical(from_ase(CH4)).frame)
    assert stored.arrays["offered"].tolist() == [good.index]


def test_frames_by_reference(tmp_path: Path) -> None:
    open_campaign, moved = Desk(tmp_path), CH4.copy()
    moved.rattle(0.05, seed=1)
    crystal = Atoms("C2", [[0, 0, 0], [1.2, 1.2, 1.2]], cell=np.eye(3) * 4, pbc=True)
    mixed = open_campaign.bytes(extxyz(CH4, crystal, moved), "a.extxyz", 3)
    assert [word.verdict for word in mixed.found] == ["candidate"] * 3
    assert len(mixed.batches) == 2
    assert [(word.batch, word.row) for word in mixed.found] == [(0, 0), (1, 0), (0, 1)]
    data = Batch.of([from_ase(CH4), from_ase(moved)]).dumps()
    archived = open_campaign.bytes(data, "a.npz", 2)
    assert [word.key for word in archived.found] == [mixed.found[0].key, mixed.found[2].key]


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("positions.npy", b"\0" * 200_000)
    assert len(out.getvalue()) < 100_000
    return out.getvalue()


def pickled() -> bytes:
    out = io.BytesIO()
    np.savez(out, species=np.array([object()]), positions=np.zeros((1, 1, 3)))
    return out.getvalue()


GOOD = extxyz(CH4)


@pytest.mark.parametrize(
    ("name", "data", "count", "why"),
    [
        ("a.extxyz", GOOD, 2, "2 frames were announced, 1 are there"),
        ("a.extxyz", GOOD * 3, 2, "2 frames were announced, more are there"),
        ("a.extxyz", b"\xff\xfe", 1, "unreadable: "),
        ("a.extxyz", b"3\n\nH 0 0\n", 1, "unreadable: "),
        ("a.extxyz", GOOD * 1000, 1, "bytes, above 100000"),
        ("a.npz", b"PK\x03\x04", 1, "unreadable: BadZipFile"),
        ("a.npz", bomb(), 1, "200000 bytes unpacked, above 100000"),
        ("a.npz", pickled(), 1, "unreadable: ValueError: Object arrays cannot be loaded"),
        ("a.npz", Batch(("H",), np.zeros((2, 3))).dumps(), 2, "numbers of shape"),
        ("a.npz", Batch(("H",), np.zeros((2, 1, 3)), np.eye(3)[None]).dumps(), 2, "one cell for"),
    ],
)
def test_bytes_that_make_no_sense(
    tmp_path: Path, name: str, data: bytes, count: int, why: str
) -> None:
    result = Desk(tmp_path, max_bytes=100_000).bytes(data, name, count)
    assert why in result.refused
    assert (result.found, result.batches) == ((), ())


def test_references_to_nothing_and_to_something_else(tmp_path: Path) -> None:
    open_campaign = Desk(tmp_path)
    missing = Ref.to(campaign_uri("world", "proposals", "a.npz"), b"x")
    assert open_campaign.screen(missing, 1).refused == "there is no such object"
    open_campaign.put(missing.uri, b"y")
    assert open_campaign.screen(missing, 1).refused == "the object is not what the reference says"


@examples(150, usual=40)
@given(st.data())
def test_no_bytes_end_the_task(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    name = data.draw(st.sampled_from(["a.extxyz", "a.npz"]))
    start = GOOD if name == "a.extxyz" else Batch.of([from_ase(CH4)]).dumps()
    at = data.draw(st.integers(0, len(start) - 1))
    patch = data.draw(st.binary(max_size=12))
    open_campaign = Desk(tmp_path_factory.mktemp("fuzz"))
    result = open_campaign.bytes(start[:at] + patch + start[at + len(patch) :], name, 1)
    assert result.refused or len(result.found) == 1


def test_the_largest_answer_fits_in_a_message(tmp_path: Path) -> None:
    """A hundred frames of a hundred compositions."""
    step = np.arange(101)[:, None] * np.array([[3.0, 0, 0]])
    many = [offered(Atoms(f"C{n}" if n else "H", step[: n or 1])) for n in range(100)]
    result = Desk(tmp_path).written(*many)
    assert len(result.batches) == 100
    assert len(encode(result)) < MAX_BODY


def test_a_long_answer_of_the_coordinator_fits_too() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    storm.hear(proposed("c" * 100, id="i", frames=frames(*map(float, range(100)))))
    storm.run()
    assert all(len(encode(judged)) < MAX_BODY for judged in storm.said(m.StructuresJudged))


def test_selection_passes_over_what_was_asked_for_before() -> None:
    storm = after_first_committee(LossyDelivery(CampaignSimulator(ripe=9), spec(mode="streaming")))
    storm.hear(proposed())
    storm.until(lambda state: any(is_offered(f.origin) for f in state.labels.frames.values()))
    storm.until(lambda state: not state.alive(m.Select))
    asked = {f.origin for f in storm.state.labels.frames.values() if is_offered(f.origin)}
    storm.until(lambda state: state.alive(m.Select))
    pools = [f for f in storm.said(m.ManifestFrozen) if f.purpose == "pool"]
    assert asked <= json.loads(pools[-1].body)["taken"].keys()


def test_a_snapshot_keeps_the_offers() -> None:
    storm = with_offers("streaming", seed=5)
    storm.until(lambda state: state.proposals.offers and state.proposals.unscreened)
    check_snapshot(storm.state)


def test_why_tells_of_offered_frames(tmp_path: Path) -> None:
    storm = after_first_committee(
        LossyDelivery(CampaignSimulator(), spec(mode="streaming", selection=PLENTY))
    )
    storm.hear(proposed())
    storm.hear(proposed("second", frames=frames(9.0), mode="label"))
    storm.run()
    store = FolderStore(tmp_path)
    store.put(campaign_uri("world", "spec.json"), storm.state.spec.model_dump_json().encode())
    ledger, _ = Ledger.open(store, "world")
    ledger.append([LedgerEntry(heard, decided) for heard, decided in storm.ledger])
    screened = "\n".join(why(store, "world", offered_key(frames(1.0)[0])))
    assert "generator ga, frame 0 of first: candidate by committee 1, deviation 0.2" in screened
    assert "chosen for training" in screened
    assert "generator ga, frame 0 of first: labelled" in screened
    straight = "\n".join(why(store, "world", offered_key(frames(9.0)[0])))
    assert "generator ga, frame 0 of second: candidate" in straight
    assert "submitted with the campaign" not in straight
