"""The select task end to end, on a real store: pool in, event and batches out."""

import threading
from collections import Counter

import numpy as np
import pytest

from dpstream.services.explorer.tasks.select import select
from dpstream.shared.atoms.frames import Batch, Frame, canonical, frame_key
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.codec import MAX_BODY, encode
from dpstream.shared.messages import Select
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import CandidatePool, Condition, PoolItem, Ref, RefusedFrames

CARBON_HYDROGEN = np.array(
    [
        [0, 0, 0],
        [0.63, 0.63, 0.63],
        [-0.63, -0.63, 0.63],
        [-0.63, 0.63, -0.63],
        [0.63, -0.63, -0.63],
    ]
)


def spec(**more):
    return Spec.model_validate(
        {
            "name": "c",
            "type_map": ["C", "H"],
            "systems": {"methane": {"structures": ["m.xyz"]}},
            "initial": {"perturb": {}},
            "stages": [{"name": "s", "systems": ["methane"], "temperatures": [300]}],
            **more,
        }
    )


class Descriptors:
    """A bench that sees atoms as their coordinates; deviations grow with the distance from 0."""

    def descriptors(self, committee, batch, context, relative):
        self.relative = relative
        return list(batch.positions), list(np.linalg.norm(batch.positions, axis=2))


class Workplace:
    """A store with a spec and pool items in it, and contexts to select in."""

    def __init__(self, folder, **spec_more):
        self.folder, self.store = folder, FolderStore(folder / "store")
        self.rng = np.random.default_rng(4)
        self.items = 0
        self.published = []
        self.spec = self.put("spec.json", spec(**spec_more).model_dump_json().encode())

    def put(self, key, data):
        self.store.put(key, data)
        return Ref.to(key, data)

    def frame(self, extra=(), noise=0.02, cell=None):
        species = ("C", "H", "H", "H", "H", *extra)
        line = np.array([[4.0 + i, 0.0, 0.0] for i in range(len(extra))]).reshape(-1, 3)
        positions = np.vstack([CARBON_HYDROGEN, line])
        positions = positions + self.rng.normal(0, noise, positions.shape)
        return canonical(Frame(species, positions, cell)).frame

    def item(self, name, frames, deviation=0.2, temperature=300.0, **arrays):
        n = len(frames)
        columns = {
            "devi_f": np.full(n, deviation),
            "devi_v": np.zeros(n),
            "time_ps": 0.2 * np.arange(n),
            **{k: np.array(v) for k, v in arrays.items()},
        }
        data = Batch.of(frames, **columns).dumps()
        self.items += 1
        ref = self.put(f"pool/{self.items}.npz", data)
        return PoolItem(
            frames=ref,
            count=n,
            trajectory=name,
            condition=Condition(system="methane", temperature=temperature),
            version=3,
            planned_ps=1.0,
        )

    def select(self, pool, resources=None, labels=10, audits=0, attempt=1, **more):
        command = Select(
            id="1",
            campaign="c",
            time=0.0,
            task="select",
            attempt=attempt,
            title="select",
            max_seconds=60,
            spec=self.spec,
            committee=self.spec,
            version=3,
            stage=0,
            seed=7,
            pool=self.put("pool.json", pool.model_dump_json().encode()),
            labels=labels,
            audits=audits,
            **more,
        )
        bus = InProcessBus(Broker())
        context = Context(self.store, bus, command, self.folder, "w", threading.Event())
        context.publish = self.published.append
        return select(resources, command, context)

    def frame_of(self, event, chosen):
        return Batch.loads(self.store.get(event.batches[chosen.batch].uri))[chosen.index]


@pytest.fixture
def place(tmp_path):
    return Workplace(tmp_path)


def test_chosen_frames_are_where_the_event_says_one_batch_per_composition(place):
    items = [place.item(f"a{i}", [place.frame()]) for i in range(4)]
    items += [place.item(f"b{i}", [place.frame(("H",))]) for i in range(3)]
    items += [place.item("p", [place.frame(cell=np.eye(3) * 12)])]
    event = place.select(CandidatePool(candidates=tuple(items)))
    assert len(event.labels) == 8
    assert len(event.batches) == 3
    for chosen in event.labels:
        assert frame_key(place.frame_of(event, chosen)) == chosen.key
    assert event.refused == {}


def water_box(width=9.0):
    """27 water molecules 3 Å apart; the last molecule has the largest coordinates."""
    water = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    sites = 3.0 * np.array([[i, j, k] for i in range(3) for j in range(3) for k in range(3)])
    positions = np.vstack([site + water for site in sites])
    return canonical(Frame(("O", "H", "H") * 27, positions, width * np.eye(3))).frame


@pytest.mark.parametrize(("per_frame", "labels", "count"), [(1, 10, 2), (3, 10, 6), (3, 4, 4)])
def test_clusters_around_the_worst_atoms_are_labelled_instead(tmp_path, per_frame, labels, count):
    clusters = {"radius": 3.2, "per_frame": per_frame, "separation": 1.0}
    place = Workplace(tmp_path, selection={"clusters": clusters}, type_map=["C", "H", "O"])
    frames = [water_box(), water_box(9.2)]
    items = [place.item(f"t{n}", [frame]) for n, frame in enumerate(frames)]
    event = place.select(CandidatePool(candidates=tuple(items)), Descriptors(), labels=labels)
    assert len(event.labels) == count
    for chosen in event.labels:
        cut = place.frame_of(event, chosen)
        assert frame_key(cut) == chosen.key
        assert cut.cell is None
        assert cut.species.count("H") == 2 * cut.species.count("O") > 6, "molecules are whole"
        assert "; cluster of" in chosen.reason
    assert len({chosen.key for chosen in event.labels}) == count


def test_a_frame_that_clusters_of_others_leave_no_label_is_counted(tmp_path):
    clusters = {"radius": 3.2, "per_frame": 3, "separation": 1.0}
    place = Workplace(tmp_path, selection={"clusters": clusters}, type_map=["C", "H", "O"])
    items = [place.item(f"t{n}", [water_box(9.0 + n / 10)]) for n in range(3)]
    event = place.select(CandidatePool(candidates=tuple(items)), Descriptors(), labels=3)
    assert len(event.labels) == 3
    assert event.refused == {"limit of the selection reached": 2}


def test_a_frame_without_a_cluster_is_refused(tmp_path):
    place = Workplace(tmp_path, selection={"clusters": {"radius": 4.9}}, type_map=["H", "O"])
    items = (place.item("t", [water_box()]),)
    event = place.select(CandidatePool(candidates=items), Descriptors())
    assert event.labels == ()
    assert event.refused == {"no cluster can be cut": 1}
    reasons = RefusedFrames.model_validate_json(place.store.get(event.refusals.uri))
    assert "9 Å wide, less than twice the radius" in str(reasons)


def test_garbage_is_refused_and_counted(place):
    close = place.frame()
    close.positions[1] = close.positions[0] + [0.3, 0, 0]
    tilted = np.array([[12.0, 0, 0], [14.0, 12, 0], [0, 0, 12]])
    items = [
        place.item("close", [close]),
        place.item("tilted", [place.frame(cell=tilted)]),
        place.item("good", [place.frame()]),
    ]
    event = place.select(CandidatePool(candidates=tuple(items)))
    assert [c.trajectory for c in event.labels] == ["good"]
    assert event.refused == {"C-H too close": 1, "skewed cell": 1}
    told = RefusedFrames.model_validate_json(place.store.get(event.refusals.uri)).frames
    assert sorted(told.values()) == [
        "C-H too close: 0.3 Å, at least 0.535 Å",
        "skewed cell: tilt 1.17, at most 1",
    ]


def test_only_so_many_reasons_are_kept_one_by_one(place, monkeypatch):
    monkeypatch.setattr("dpstream.services.explorer.tasks.select.MAX_REASONS", 3)
    close = [place.frame(noise=0.5) for _ in range(9)]
    event = place.select(CandidatePool(candidates=(place.item("close", close),)))
    told = RefusedFrames.model_validate_json(place.store.get(event.refusals.uri)).frames
    assert (sum(event.refused.values()), len(told)) == (9 - len(event.labels), 3)


def test_what_was_chosen_of_a_trajectory_is_its_share(place):
    items = (place.item("a", [place.frame()]), place.item("b", [place.frame()]))
    event = place.select(CandidatePool(candidates=items, taken={"a": (0.9,)}, used={"a": 1}))
    assert [c.trajectory for c in event.labels] == ["b"]


def test_frames_keep_apart_from_those_an_earlier_committee_chose(tmp_path):
    place = Workplace(tmp_path, selection={"per_trajectory": 3})
    item = place.item("a", [place.frame() for _ in range(3)])  # at 0, 0.2 and 0.4 ps
    event = place.select(CandidatePool(candidates=(item,), taken={"a": (0.05, 0.25)}))
    assert [c.time_ps for c in event.labels] == [0.4]
    assert event.refused == {"too close in time to another frame of its trajectory": 2}


def test_audits_come_from_the_reservoirs_with_weights_and_never_from_the_labels(place):
    candidates = tuple(place.item(f"c{i}", [place.frame()]) for i in range(3))
    reservoirs = tuple(
        place.item(f"c{i}", [place.frame() for _ in range(5)], weight=[5.0] * 5, failed=[False] * 5)
        for i in range(8)
    )
    event = place.select(CandidatePool(candidates=candidates, reservoirs=reservoirs), audits=6)
    assert (len(event.labels), len(event.audits)) == (3, 6)
    assert not {c.key for c in event.labels} & {c.key for c in event.audits}
    assert len({c.trajectory for c in event.audits}) == 6
    for chosen in event.audits:
        # Six of eight trajectories, one of five reservoir frames each, worth five frames.
        assert chosen.weight == pytest.approx(5.0 * (8 / 6) * 5, rel=1e-4)
        assert frame_key(place.frame_of(event, chosen)) == chosen.key
    # Frames left over in a reservoir never asked for a label: they are no refusals.
    assert event.refused == {}


def test_failed_garbage_is_no_audit(place):
    broken = place.frame()
    broken.positions[2] = broken.positions[1]
    item = place.item("a", [broken], weight=[1.0], failed=[True])
    event = place.select(CandidatePool(reservoirs=(item,)), audits=5)
    assert event.audits == ()
    assert event.refused == {"audit: H-H too close": 1}


def failing(place):
    broken = place.frame()
    broken.positions[2] = broken.positions[1]
    return [
        place.item("broken", [broken], 0.4, weight=[1.0], failed=[True]),
        place.item("worse", [place.frame()], 3.0, weight=[1.0], failed=[True]),
        place.item("better", [place.frame()], 0.5, weight=[1.0], failed=[True]),
        place.item("accurate", [place.frame()], 0.01, weight=[9.0], failed=[False]),
    ]


def test_without_candidates_the_least_deviating_sound_failed_frames_are_labelled(place):
    event = place.select(CandidatePool(reservoirs=tuple(failing(place)), fallback=True), labels=1)
    assert [c.trajectory for c in event.labels] == ["better"]
    assert event.refused == {"H-H too close": 1, "limit of the selection reached": 1}


def test_failed_frames_are_not_labelled_unless_asked_for(place):
    pool = CandidatePool(reservoirs=tuple(failing(place)))
    assert place.select(pool).labels == ()
    candidates = (place.item("candidate", [place.frame()]),)
    event = place.select(CandidatePool(candidates=candidates, fallback=True), attempt=2)
    assert [c.trajectory for c in event.labels] == ["candidate"]


def test_diverse_asks_the_bench_and_finds_the_stretched_atom(tmp_path):
    place = Workplace(tmp_path, selection={"policy": "diverse"})
    frames = [place.frame(noise=0.001) for _ in range(5)]
    frames[3].positions[1] *= 1.6
    items = [place.item(f"a{i}", [f], 0.3 if i == 0 else 0.2) for i, f in enumerate(frames)]
    event = place.select(CandidatePool(candidates=tuple(items)), Descriptors(), labels=2)
    assert [c.trajectory for c in event.labels] == ["a0", "a3"]


@pytest.mark.parametrize(
    ("trust", "relative"),
    [
        ({"low": 0.1, "high": 0.3, "relative": 1.5}, 1.5),
        ({"low": 0.1, "high": 0.3}, None),
        ({"target": 0.1}, None),
    ],
)
def test_deviations_of_atoms_are_relative_where_the_trust_levels_are(tmp_path, trust, relative):
    """Atoms count as uncertain from the lower level on."""
    place, bench = Workplace(tmp_path, selection={"policy": "diverse"}, trust=trust), Descriptors()
    place.select(CandidatePool(candidates=(place.item("a", [place.frame()]),)), bench)
    assert bench.relative == relative


@pytest.mark.parametrize(("own", "count"), [(None, 1), ({"low": 0.1, "high": 9.0}, 3)])
def test_atoms_are_uncertain_from_the_lower_level_of_their_system_on(tmp_path, own, count):
    """One cluster around the worst atom, and further ones around atoms from that level on."""
    stage = {"name": "s", "systems": ["methane"], "temperatures": [300]}
    stage["system_trust"] = {} if own is None else {"methane": own}
    place = Workplace(
        tmp_path,
        type_map=["C", "H", "O"],
        trust={"low": 1e3, "high": 1e4},
        selection={"clusters": {"radius": 3.2, "per_frame": 3, "separation": 1.0}},
        stages=[stage],
        mode="lockstep",
    )
    item = place.item("t", [water_box()])
    event = place.select(CandidatePool(candidates=(item,)), Descriptors(), labels=10)
    assert len(event.labels) == count


def test_relative_deviations_of_a_system_do_not_set_the_level_of_another(tmp_path):
    own = {"low": 0.001, "high": 9.0, "relative": 1.0}
    stage = {"name": "s", "systems": ["methane", "water"], "temperatures": [300]}
    place = Workplace(
        tmp_path,
        type_map=["C", "H", "O"],
        systems={name: {"structures": ["m.xyz"]} for name in ("methane", "water")},
        trust={"target": 0.1},
        selection={"clusters": {"radius": 3.2, "per_frame": 3, "separation": 1.0}},
        stages=[{**stage, "system_trust": {"water": own}}],
        mode="lockstep",
    )
    calibrated = place.item("calibrated", [water_box()], deviation=1e3)
    water = place.item("relative", [water_box(9.2)], deviation=0.002)
    water = water.model_copy(update={"condition": Condition(system="water", temperature=300.0)})
    event = place.select(CandidatePool(candidates=(calibrated, water)), Descriptors(), labels=10)
    assert Counter(chosen.trajectory for chosen in event.labels)["calibrated"] == 1


def test_the_usual_draw_is_uniform(tmp_path):
    place = Workplace(tmp_path)
    items = [place.item(f"a{i}", [place.frame()]) for i in range(3)]
    event = place.select(CandidatePool(candidates=tuple(items)), labels=1)
    assert event.labels[0].reason.startswith("uniform draw, from ")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["random", "uniform", "max-deviation", "diverse"])
def test_the_same_pool_in_another_order_gives_the_same_choice(tmp_path, policy):
    place = Workplace(tmp_path, selection={"policy": policy})
    items = [place.item(f"a{i}", [place.frame() for _ in range(3)]) for i in range(12)]
    first = place.select(CandidatePool(candidates=tuple(items)), Descriptors(), labels=5)
    again = place.select(
        CandidatePool(candidates=tuple(items[::-1])), Descriptors(), labels=5, attempt=2
    )
    assert first.labels == again.labels
    assert [b.sha256 for b in first.batches] == [b.sha256 for b in again.batches]


@pytest.mark.slow
def test_what_one_event_cannot_name_comes_in_chunks(tmp_path):
    place = Workplace(tmp_path, selection={"per_trajectory": 2000, "min_separation": 0.0})
    candidates = place.item("long", [place.frame() for _ in range(1020)])
    reservoirs = [
        place.item(f"other-{i}", [place.frame()], weight=[3.0], failed=[False]) for i in range(60)
    ]
    pool = CandidatePool(candidates=(candidates,), reservoirs=tuple(reservoirs))
    last = place.select(pool, labels=1000, audits=50)
    events = [*place.published, last]
    assert [(e.chunk, e.last) for e in events] == [(i, i == 13) for i in range(14)]
    assert [len(e.labels) for e in events] == [75] * 13 + [25]
    assert [len(e.audits) for e in events] == [0] * 13 + [50]
    keys = [chosen.key for e in events for chosen in (*e.labels, *e.audits)]
    assert len(set(keys)) == 1050
    for event in events:
        for chosen in (*event.labels, *event.audits):
            assert frame_key(place.frame_of(event, chosen)) == chosen.key
    assert [e.refused for e in events] == [{}] * 13 + [{"limit of the selection reached": 20}]


@pytest.mark.slow
def test_a_chunk_of_the_longest_names_fits_into_one_message(place):
    items = [place.item(f"{'y' * 150}-{i}", [place.frame(("H",) * i)]) for i in range(75)]
    event = place.select(CandidatePool(candidates=tuple(items)), labels=75)
    assert len(event.labels) == len(event.batches) == 75
    assert len(encode(event)) < MAX_BODY
