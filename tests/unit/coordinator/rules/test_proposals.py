"""Frames that external generators offer: what the policy makes of them, whatever the deliveries,
and what the judge makes of their bytes."""

from __future__ import annotations

import io
import json
import re
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st

from dpstream.generators.client import Generator
from dpstream.services.coordinator.apply.proposals import FINAL_VERDICTS
from dpstream.services.coordinator.inbox import Inbox
from dpstream.services.coordinator.ledger.ledger import Ledger, LedgerEntry
from dpstream.services.coordinator.parked import ParkedEvents
from dpstream.services.coordinator.task_queue import TaskQueue
from dpstream.services.coordinator.views.why import why
from dpstream.services.explorer.handlers import HANDLERS
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.explorer.tasks.screen import screen
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import Batch, canonical, frame_key, from_ase
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import MAX_BODY, decode, encode, topic_of
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime import parser
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.exit_limits import ExitLimits
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import ANONYMOUS, OfferedFrame, Ref, campaign_uri, is_offered
from tests.support.adapters.published import Published
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, offered_key, spec
from tests.support.campaigns.lossy_delivery import (
    LossyDelivery,
    check_counters,
    check_snapshot,
    replayed,
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


def told(campaign: LossyDelivery, correlation: str = "first") -> dict[int, list[str]]:
    """The verdicts on each frame, in their order."""
    words: dict[int, list[str]] = {}
    for judged in campaign.decisions(m.StructuresJudged):
        if judged.correlation == correlation:
            for word in judged.verdicts:
                words.setdefault(word.index, []).append(word.verdict)
    return words


def refusals(campaign: LossyDelivery) -> list[str]:
    return [judged.refused for judged in campaign.decisions(m.StructuresJudged) if judged.refused]


def after_first_committee(campaign: LossyDelivery) -> LossyDelivery:
    campaign.until(lambda state: state.committee.version)
    return campaign


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
    campaign = LossyDelivery(world, spec(mode=mode), seed, faults)
    again = offers()
    if seed is not None:
        campaign.random.shuffle(again)
    for offer in again:
        campaign.deliver(offer)
    campaign.events += offers()
    return campaign


@examples(8, usual=4)
@given(SEEDS)
def test_lockstep_ends_in_the_same_state_with_offers_in_the_storm(seed: int) -> None:
    calm, stormy = with_offers("lockstep"), with_offers("lockstep", seed)
    assert calm.run().finished is not None
    stormy.run(check_counters)
    assert stormy.state.dumps() == calm.state.dumps()
    assert told(stormy, "a") == told(calm, "a")


@pytest.mark.slow
@examples(15, usual=6)
@given(SEEDS, st.sampled_from(["lockstep", "streaming"]), st.sampled_from([0.0, 0.1, 0.4]))
def test_every_offered_frame_gets_one_last_word(seed: int, mode: str, faults: float) -> None:
    campaign = with_offers(mode, seed, faults)
    state = campaign.run_resumed(check_counters)
    assert state.finished is not None
    assert not state.proposals.waiting
    assert not state.proposals.offers
    refused = Counter(j.correlation for j in campaign.decisions(m.StructuresJudged) if j.refused)
    for offer in offers():
        if refused[offer.correlation]:  # its judge was given up
            assert refused[offer.correlation] == 1
            assert told(campaign, offer.correlation) == {}
            continue
        words = told(campaign, offer.correlation)
        assert set(words) == set(range(len(offer.frames)))
        for said in words.values():
            assert [word for word in said if word in FINAL] == said[-1:], said
            assert said.count("candidate") <= 1
    assert replayed(campaign.state.spec, campaign.ledger).dumps() == state.dumps()


def test_candidates_of_a_generator_are_labelled_and_trained_on() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec(selection=PLENTY)))
    campaign.deliver(proposed())
    state = campaign.run(check_counters)
    assert set(map(tuple, told(campaign).values())) == {("candidate", "labelled")}
    bought = [f for f in frames_of(state).values() if is_offered(f.origin)]
    assert {f.origin for f in bought} == {f"generator:ga/first/{n}" for n in range(3)}
    learned = {
        label["uri"]
        for frozen in campaign.decisions(m.ManifestFrozen)
        if frozen.purpose == "dataset"
        for label in json.loads(frozen.body)["labels"]
    }
    assert {frame.label for frame in bought if frame.label} <= learned


def test_the_energy_is_told_with_the_label() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    campaign.deliver(proposed(mode="label"))
    campaign.until(lambda state: state.proposals.labels)
    (command,) = (
        c for c in campaign.issued if isinstance(c, m.Label) and "ga" in _owners(campaign, c)
    )
    campaign.hold(m.Label)
    for done in campaign.world.answer(command)[1:]:
        assert isinstance(done, m.LabelsDone)
        accepted = tuple(a.model_copy(update={"energy": -1.5}) for a in done.accepted)
        decided = campaign.deliver(done.model_copy(update={"accepted": accepted}))
        (judged,) = (d for d in decided if isinstance(d, m.StructuresJudged))
        assert {word.energy for word in judged.verdicts} == {-1.5}
        assert judged.correlation == "first"


def _owners(campaign: LossyDelivery, command: m.Label) -> set[str]:
    origins = [frames_of(campaign.state)[ref.key].origin for ref in command.frames]
    return {origin.split(":")[1].split("/")[0] for origin in origins if is_offered(origin)}


def test_what_the_committee_is_sure_of_is_not_labelled() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(ripe=0), spec()))
    campaign.deliver(proposed())
    state = campaign.run(check_counters)
    assert set(map(tuple, told(campaign).values())) == {("accurate",)}
    assert not any(is_offered(f.origin) for f in frames_of(state).values())


def test_a_candidate_that_a_newer_committee_is_sure_of_is_given_up() -> None:
    of = spec(selection={"per_round": 1, "select_every": 2})
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(ripe=2), of))
    campaign.deliver(proposed())
    campaign.run(check_counters)
    endings = Counter(words[-1] for words in told(campaign).values())
    assert endings["accurate"] >= 2
    assert endings.total() == 3
    versions = {j.version for j in campaign.decisions(m.StructuresJudged) if j.version}
    assert versions == {2}


def test_known_frames_are_duplicates() -> None:
    campaign = after_first_committee(
        LossyDelivery(CampaignSimulator(), spec(mode="streaming", selection=PLENTY))
    )
    campaign.deliver(proposed())
    campaign.until(lambda state: len(state.proposals.offers) == 3)
    campaign.deliver(proposed("second", frames=frames(2.0, 5.0)))
    campaign.until(lambda state: len(state.proposals.offers) == 4)
    assert told(campaign, "second") == {0: ["duplicate"], 1: ["candidate"]}
    campaign.until(lambda state: offered_key(frames(1.0)[0]) in frames_of(state))
    campaign.run()
    assert all(words[-1] in FINAL for words in told(campaign).values())


def test_the_same_proposal_again_changes_nothing() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    campaign.deliver(proposed())
    before = campaign.state
    assert campaign.deliver(proposed(id="another", time=5000.0, priority=7)) == ()
    assert campaign.state is before
    campaign.run()
    after = campaign.state
    assert campaign.deliver(proposed()) == ()
    assert campaign.state is after
    assert campaign.deliver(proposed("other")) != ()


# ------------------------------------------------------------------------------- not in the way


def test_streaming_waits_for_no_label_that_a_generator_asked_for() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec(mode="streaming"))
    campaign.deliver(proposed(mode="label"))
    held = [c for c in _held_labels(campaign) if "ga" in _owners(campaign, c)]
    assert len(held) == 1
    assert campaign.state.labels.proposed == 3
    assert campaign.state.awaited == campaign.state.labels.pending - 3
    campaign.until(lambda state: campaign.decisions(m.RoundJudged))
    assert campaign.state.labels.proposed == 3
    campaign.commands += held
    assert campaign.run(check_counters).finished is not None
    assert set(map(tuple, told(campaign).values())) == {("candidate", "labelled")}


def _held_labels(campaign: LossyDelivery) -> list[m.Label]:
    """Run until the generator's labels are asked for, and take those tasks away."""
    campaign.until(lambda state: state.labels.proposed and not state.labels.waiting)
    held = [c for c in campaign.commands if isinstance(c, m.Label) and _owners(campaign, c)]
    campaign.commands = [c for c in campaign.commands if c not in held]
    return held


def test_in_lockstep_offers_join_with_the_next_round() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec()))
    assert campaign.state.exploration.round is not None
    campaign.deliver(proposed())
    campaign.deliver(proposed("straight", frames=frames(11.0), mode="label"))
    campaign.until(lambda state: state.exploration.round is None)
    assert campaign.decisions(m.Screen) == []
    campaign.until(lambda state: state.exploration.round is not None)
    assert {command.version for command in campaign.decisions(m.Screen)} == {0, 2}
    held = campaign.hold(m.Screen)
    with pytest.raises(AssertionError, match="nothing is under way"):
        campaign.until(
            lambda state: state.alive(m.Select)
        )  # the round selects with them or not yet
    campaign.commands += held
    assert campaign.run(check_counters).finished is not None


def test_rejected_offers_do_not_count_against_a_stage() -> None:
    reject = {offered_key(frame) for frame in frames(*map(float, range(40)))}
    of = spec(selection=PLENTY)
    campaign = after_first_committee(
        LossyDelivery(CampaignSimulator(reject=reject.__contains__), of)
    )
    campaign.deliver(proposed(frames=frames(*map(float, range(20)))))
    campaign.deliver(proposed("b", frames=frames(*map(float, range(20, 40))), mode="label"))
    state = campaign.run(check_counters)
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    assert {words[-1] for words in told(campaign).values()} == {"rejected"}
    for judged in campaign.decisions(m.RoundJudged):
        assert not any(is_offered(name) for name in judged.counts)


def test_a_generator_shares_no_label_task_and_urgent_ones_go_first() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    campaign.hold(m.Explore)
    campaign.deliver(proposed("late", frames=frames(1.0), mode="label", priority=-1))
    campaign.deliver(proposed("soon", frames=frames(2.0), mode="label", priority=5))
    campaign.deliver(proposed("pso", frames=frames(3.0), mode="label", generator="pso"))
    for command in campaign.hold(m.Screen):
        for result in campaign.take(command):
            campaign.deliver(result)
    labels = [c for c in campaign.issued if isinstance(c, m.Label) and _owners(campaign, c)]
    assert [len(_owners(campaign, command)) for command in labels] == [1, 1, 1]
    assert {command.priority for command in labels} == {-1, 0, 5}
    bus, task_queue = InProcessBus(), TaskQueue(600.0)
    for command in labels:
        task_queue.add(command, 0.0)
    task_queue.publish(bus, 0.0, 1)
    line = bus.consume("label.tblite", prefetch=10)
    priorities = [decode(cast(Any, line.next(0.0)).body).priority for _ in labels]
    assert priorities == [5, 0, -1]


def test_when_a_campaign_ends_the_rest_hears_of_it() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    campaign.deliver(proposed())
    campaign.until(lambda state: state.proposals.offers)
    campaign.deliver(proposed("unjudged"))
    campaign.deliver(m.CampaignCancelled(id="enough", campaign="world", time=9.0))
    assert {words[-1] for words in told(campaign).values()} == {"dropped"}
    assert refusals(campaign) == ["the campaign has ended"]
    campaign.deliver(proposed("too-late"))
    assert refusals(campaign) == ["the campaign has ended"] * 2
    campaign.run()
    assert not campaign.state.proposals.waiting


def test_a_judge_that_gives_up_is_a_refusal() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    campaign.deliver(proposed())
    (command,) = campaign.hold(m.Screen)
    failed = CampaignSimulator.envelope(command, "ending")
    campaign.deliver(m.TaskFailed(**failed, permanent=True, reason="no such model"))
    assert refusals(campaign) == ["abandoned after 1 attempt: no such model"]
    assert not campaign.state.proposals.waiting


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
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec(proposals=limits)))
    campaign.deliver(proposed(**changes))
    assert refusals(campaign) == [why]
    (judged,) = campaign.decisions(m.StructuresJudged)
    assert (judged.correlation, judged.generator) == ("first", "ga")
    assert campaign.decisions(m.Screen) == []
    assert not campaign.state.proposals.waiting


def test_the_hour_and_the_generator_bound_the_rate() -> None:
    campaign = after_first_committee(
        LossyDelivery(CampaignSimulator(), spec(proposals={"frames_per_hour": 4}))
    )

    def offer(correlation: str, **changes: Any) -> int:
        before = len(refusals(campaign))
        campaign.deliver(proposed(correlation, **changes))
        return len(refusals(campaign)) - before

    assert offer("a") == 0
    assert offer("b") == 1
    assert offer("c", generator="pso") == 0
    assert offer("d", time=3700.0) == 0
    assert offer("e", time=3800.0) == 1
    assert offer("f", time=100.0) == 1  # a clock that goes back opens nothing


def test_the_limits_of_a_user_hold_whatever_its_names() -> None:
    of = spec(proposals={"frames_per_hour": 7, "outstanding": 4})
    campaign = LossyDelivery(CampaignSimulator(), of)
    campaign.until(lambda state: state.submitted)
    for number in range(5):
        campaign.deliver(proposed("one", generator=f"ga-{number}", user="gen"))
    waiting, *hourly = refusals(campaign)
    assert waiting.startswith("6 frames are waiting")
    assert [why.partition(";")[0] for why in hourly] == ["more than 7 frames in one hour"] * 3
    campaign.deliver(proposed("two", generator="ga-0", user="other"))
    campaign.deliver(proposed("three", generator="ga"))
    assert len(refusals(campaign)) == 4
    assert {p.user for p in campaign.state.proposals.waiting.values()} == {"gen", "other", None}


def test_a_users_candidates_are_one_condition_and_their_origins_name_it() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec()))
    for number, name in enumerate(("ga", "pso")):
        offered = frames(*(10.0 * number + n for n in range(3)))
        campaign.deliver(proposed("first", generator=name, user="gen", frames=offered))
    campaign.until(lambda state: len(state.proposals.offers) == 6)
    pool = campaign.state.candidates.pool.values()
    assert {item.condition.system for item in pool if is_offered(item.trajectory)} == {
        "generator:gen"
    }
    campaign.run(check_counters)
    known = frames_of(campaign.state).values()
    origins = {frame.origin.rpartition("/")[0] for frame in known if is_offered(frame.origin)}
    assert origins == {"generator:gen/ga/first", "generator:gen/pso/first"}
    judged = campaign.decisions(m.StructuresJudged)
    assert {(each.generator, each.user) for each in judged} == {("ga", "gen"), ("pso", "gen")}
    assert "ga of gen, first: " in judged[0].describe()


@pytest.mark.parametrize(
    ("users", "stated", "counted"),
    [(True, "gen", "gen"), (True, None, ANONYMOUS), (False, None, None), (False, "gen", None)],
)
def test_the_coordinator_states_the_user_of_a_proposal(
    tmp_path: Path, users: bool, stated: str | None, counted: str | None
) -> None:
    store = FolderStore(tmp_path)
    inbox = Inbox(store, lambda: 7.0, ParkedEvents(store), users=users)
    forged = proposed(user="another")
    taken = inbox.read(Published(encode(forged), topic_of(forged), user=stated))
    assert taken == forged.model_copy(update={"time": 7.0, "user": counted})


def test_a_proposal_without_a_user_hears_no_name_in_its_place() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec()))
    campaign.deliver(proposed(user=ANONYMOUS))
    campaign.run(check_counters)
    assert {judged.user for judged in campaign.decisions(m.StructuresJudged)} == {None}


def test_a_generator_hears_no_verdict_on_frames_of_another_user_with_its_name(
    tmp_path: Path,
) -> None:
    class Known(InProcessBus):
        user = "gen"  # type: ignore[assignment]

    store, bus = FolderStore(tmp_path), Known()
    store.create("campaigns/world/spec.json", b"{}")
    judged = m.StructuresJudged(
        id="1",
        campaign="world",
        time=0.0,
        generator="ga",
        correlation="c",
        proposal="p",
        version=1,
        refused="too many",
        count=1,
    )
    with Generator(bus, store, "world", "ga") as generator:
        for user in ("other", None, "gen"):
            event = judged.model_copy(update={"user": user, "correlation": f"of-{user}"})
            bus.publish([Outgoing(encode(event), topic=topic_of(event))])
        mine = [each.correlation for each in generator.verdicts(timeout=0.2)]
        # Without a user: the coordinator knows none, or release 0.1.0 recorded the proposal.
        assert mine == ["of-None", "of-gen"]


def test_the_budgets_bound_what_generators_buy() -> None:
    of = spec(mode="streaming", proposals={"labels": 2})
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), of))
    campaign.deliver(proposed(mode="label"))
    campaign.run(check_counters)
    words = told(campaign)
    assert sorted(words.values()) == [["candidate", "labelled"]] * 2 + [["refused"]]
    assert campaign.state.proposals.labels == 2


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_unreadable_frames_are_kept_as_such(words: list[str]) -> None:
    document = json.loads(encode(proposed()))
    document["frames"] = [{"species": words, "positions": words}, words, None]
    event = decode(json.dumps(document).encode())
    assert all(frame.malformed.startswith("malformed: ") for frame in event.frames)
    assert decode(encode(event)) == event


# ------------------------------------------------------------------------------- the judge


CH4 = molecule("CH4")


@pytest.fixture(scope="module", autouse=True)
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Desk.resources = ExplorerResources(tmp_path_factory.mktemp("explorer"), warm=False)
    yield
    Desk.resources.close()


class Desk:
    """A campaign's store and the judge's command over one object in it. No committee: nothing
    here needs an engine."""

    resources: ClassVar[ExplorerResources]

    def __init__(self, root: Path, **limits: Any) -> None:
        self.root, self.store = root, FolderStore(root / "store")
        of = Spec.model_validate({**spec().model_dump(), "proposals": limits})
        self.spec = self.put("campaigns/world/spec.json", of.model_dump_json().encode())

    def put(self, uri: str, data: bytes) -> Ref:
        self.store.put(uri, data)
        return Ref.to(uri, data)

    def command(self, offered: Ref, count: int, first: int = 0) -> m.Screen:
        return m.Screen(
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

    def screen(self, offered: Ref, count: int, first: int = 0) -> m.StructuresScreened:
        command = self.command(offered, count, first)
        scratch = self.root / command.task
        scratch.mkdir()
        context = Context(self.store, InProcessBus(), command, scratch, "w", threading.Event())
        result = screen(self.resources, command, context)
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


@pytest.mark.slow
def test_a_verdict_on_every_kind_of_bad_frame(tmp_path: Path) -> None:
    close = CH4.copy()
    close.positions[1] = close.positions[0] + 0.1
    flat = Atoms("H2", [[0, 0, 0], [0, 0, 1]], cell=[5, 5, 0], pbc=True)
    rows = CH4.positions.tolist()
    cases = {
        "malformed: positions have shape (4, 3); must be (5, 3)": offered(CH4, positions=rows[:4]),
        "malformed: setting an array element with a sequence": offered(
            CH4, positions=[[0], [1, 2]]
        ),
        "malformed: positions must be three numbers": offered(CH4, positions=[[0] * 15]),
        "malformed: species: ": OfferedFrame.model_validate({"species": 5}),
        "coordinates must be finite": offered(CH4, positions=[[float("nan")] * 3, *rows[1:]]),
        "element 'Ar' is not in type_map (H, C)": offered(Atoms("Ar")),
        "0 atoms; allowed: 1 to 6": OfferedFrame(),
        "7 atoms; allowed: 1 to 6": offered(Atoms("H7", np.eye(7)[:, :3] * 9)),
        "C-H too close": offered(close),
        "the cell vectors must enclose a volume": offered(flat),
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
    assert again.reason == f"identical to frame {good.index} of the proposal"
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


def empty_names(frames: int) -> bytes:
    """A billion atoms whose symbols take no bytes, and positions of as many or of one."""
    header = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        head = header.ljust(117) + b"\n"
        start = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little")
        archive.writestr("species.npy", start + head)
        positions = io.BytesIO()
        np.save(positions, np.zeros((frames, 1 if frames else 10**9, 3)))
        archive.writestr("positions.npy", positions.getvalue())
    assert len(out.getvalue()) < 500
    return out.getvalue()


def pickled() -> bytes:
    out = io.BytesIO()
    np.savez(out, species=np.array([object()]), positions=np.zeros((1, 1, 3)))
    return out.getvalue()


GOOD = extxyz(CH4)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes too long does so after a second."""
    monkeypatch.setattr(parser, "LEAST_SECONDS", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("name", "data", "count", "why"),
    [
        ("a.extxyz", GOOD, 2, "2 frames were announced, found 1"),
        ("a.extxyz", GOOD * 3, 2, "2 frames were announced, found more"),
        ("a.extxyz", b"\xff\xfe", 1, "unreadable: "),
        ("a.extxyz", b"3\n\nH 0 0\n", 1, "unreadable: "),
        ("a.extxyz", GOOD * 1000, 1, "bytes; at most 100000 allowed"),
        ("a.npz", b"PK\x03\x04", 1, "unreadable: BadZipFile"),
        ("a.npz", bomb(), 1, "200000 bytes unpacked; at most 100000 allowed"),
        ("a.npz", empty_names(1), 1, "unreadable: ValueError: 1000000000 species of 1 atoms"),
        # Which limit ends it first depends on the machine.
        ("a.npz", empty_names(0), 1, "unreadable: (takes|needs) more than (1.12 s|257 MiB) of "),
        ("a.npz", pickled(), 1, "unreadable: ValueError: Object arrays cannot be loaded"),
        ("a.npz", Batch(("H",), np.zeros((2, 3))).dumps(), 2, "numbers of shape"),
        (
            "a.npz",
            Batch(("H",), np.zeros((2, 1, 3)), np.eye(3)[None]).dumps(),
            2,
            "number of cells",
        ),
    ],
)
def test_bytes_that_make_no_sense(
    tmp_path: Path, name: str, data: bytes, count: int, why: str
) -> None:
    result = Desk(tmp_path, max_bytes=100_000).bytes(data, name, count)
    assert re.search(why, result.refused)
    assert (result.found, result.batches) == ((), ())


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_an_announced_quadrillion_of_atoms_ends_the_parser_alone(tmp_path: Path) -> None:
    desk, began = Desk(tmp_path), time.monotonic()
    desk.bytes(GOOD, "a.extxyz", 1)
    child = desk.resources.parser.child.pid
    result = desk.bytes(b"1000000000000000\ncomment\n", "b.extxyz", 1)
    assert "takes more than 1.12 s of processor time" in result.refused
    assert time.monotonic() - began < 60
    assert desk.bytes(GOOD, "c.extxyz", 1).found[0].verdict == "candidate"
    assert desk.resources.parser.child.pid == child


def test_a_command_in_the_queue_of_earlier_releases_is_worked_off(tmp_path: Path) -> None:
    desk, bus, stopping = Desk(tmp_path), InProcessBus(), threading.Event()
    command = desk.command(desk.put("f.extxyz", GOOD), 1)
    bus.publish([Outgoing(encode(command), queue="judge")])
    bus.bind("results", "world.structures-screened")
    limits = ExitLimits(max_tasks=1)
    worker: Worker[Any] = Worker(
        "w", bus, desk.store, "judge", HANDLERS, desk.resources, tmp_path, stopping=stopping
    )
    worker.limits = limits
    worker.run()
    delivery = bus.consume("results").next(1.0)
    assert delivery is not None
    assert decode(delivery.body).found[0].verdict == "candidate"


def test_references_to_nothing_and_to_something_else(tmp_path: Path) -> None:
    open_campaign = Desk(tmp_path)
    missing = Ref.to(campaign_uri("world", "proposals", "a.npz"), b"x")
    assert open_campaign.screen(missing, 1).refused == "the object does not exist"
    open_campaign.put(missing.uri, b"y")
    assert open_campaign.screen(missing, 1).refused == "the object does not match its reference"


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


@pytest.mark.slow
def test_the_largest_answer_fits_in_a_message(tmp_path: Path) -> None:
    """A hundred frames of a hundred compositions."""
    step = np.arange(101)[:, None] * np.array([[3.0, 0, 0]])
    many = [offered(Atoms(f"C{n}" if n else "H", step[: n or 1])) for n in range(100)]
    result = Desk(tmp_path).written(*many)
    assert len(result.batches) == 100
    assert len(encode(result)) < MAX_BODY


def test_a_long_answer_of_the_coordinator_fits_too() -> None:
    campaign = after_first_committee(LossyDelivery(CampaignSimulator(), spec(mode="streaming")))
    campaign.deliver(proposed("c" * 100, id="i", frames=frames(*map(float, range(100)))))
    campaign.run()
    assert all(len(encode(judged)) < MAX_BODY for judged in campaign.decisions(m.StructuresJudged))


@pytest.mark.slow
def test_selection_passes_over_what_was_asked_for_before() -> None:
    campaign = after_first_committee(
        LossyDelivery(CampaignSimulator(ripe=9), spec(mode="streaming"))
    )
    campaign.deliver(proposed())
    campaign.until(lambda state: any(is_offered(f.origin) for f in frames_of(state).values()))
    campaign.until(lambda state: not state.alive(m.Select))
    asked = {f.origin for f in frames_of(campaign.state).values() if is_offered(f.origin)}
    campaign.until(lambda state: state.alive(m.Select))
    pools = [f for f in campaign.decisions(m.ManifestFrozen) if f.purpose == "pool"]
    assert asked <= json.loads(pools[-1].body)["taken"].keys()


@pytest.mark.slow
def test_a_snapshot_keeps_the_offers() -> None:
    campaign = with_offers("streaming", seed=5)
    campaign.until(lambda state: state.proposals.offers and state.proposals.unscreened)
    check_snapshot(campaign.state)


@pytest.mark.slow
def test_why_tells_of_offered_frames(tmp_path: Path) -> None:
    campaign = after_first_committee(
        LossyDelivery(CampaignSimulator(), spec(mode="streaming", selection=PLENTY))
    )
    campaign.deliver(proposed())
    campaign.deliver(proposed("second", frames=frames(9.0), mode="label"))
    campaign.run()
    store = FolderStore(tmp_path)
    store.put(campaign_uri("world", "spec.json"), campaign.state.spec.model_dump_json().encode())
    ledger, _ = Ledger.open(store, "world")
    ledger.append([LedgerEntry(heard, decided) for heard, decided in campaign.ledger])
    screened = "\n".join(why(store, "world", offered_key(frames(1.0)[0])))
    assert "generator ga, frame 0 of first: candidate by committee 1, deviation 0.2" in screened
    assert "chosen for training" in screened
    assert "generator ga, frame 0 of first: labelled" in screened
    straight = "\n".join(why(store, "world", offered_key(frames(9.0)[0])))
    assert "generator ga, frame 0 of second: candidate" in straight
    assert "submitted with the campaign" not in straight
