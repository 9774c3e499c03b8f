"""A campaign is frozen once; the same one again is the same event, another one is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from dpstream.inputs.gather import Gathered, gather
from dpstream.running.cross_check import force_tolerance
from dpstream.running.first_checks import FirstChecks
from dpstream.running.submit import announced, submit
from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.ledger.submission import stored_spec
from dpstream.services.coordinator.state import State
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import (
    Batch,
    Frame,
    FrameLabel,
    canonical,
    decode_labelled,
    frame_key,
    from_ase,
)
from dpstream.shared.codec import decode, encode
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Dataset, FrameRef, Recipe, Ref, stable_id

NAME = "a-campaign-with-the-longest-name-that-the-pattern-of-names-takes"[:63]


def spec(**sections: Any) -> Spec:
    document: dict[str, Any] = {
        "name": NAME,
        "type_map": ["C", "H"],
        "systems": {"a": {"structures": ["a.xyz"]}},
        "initial": {"perturb": {"copies": 4}},
        "stages": [{"name": "one", "systems": ["a"], "temperatures": [300]}],
    }
    return Spec.model_validate({**document, **sections})


@pytest.fixture
def recipe() -> Recipe:
    return make_recipe(spec().labels)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def gathered(tmp_path: Path) -> Gathered:
    """Molecules and cells, imported with and without virial, in mixed order."""
    molecule("CH4").write(tmp_path / "a.xyz")
    rng = np.random.default_rng(3)
    atoms = [molecule("CH4"), bulk("C", cubic=True), molecule("CH4"), bulk("C", cubic=True)]
    labelled = []
    for number, item in enumerate(atoms):
        item.rattle(0.05, seed=number)
        frame = canonical(from_ase(item)).frame
        virial = None if number < 3 else rng.normal(size=(3, 3))
        label = FrameLabel(float(number), rng.normal(size=(len(item), 3)), virial)
        labelled.append((frame, label))
    return replace(gather(spec(), tmp_path), labelled=labelled, test=labelled[:1])


def frame_of(store: FolderStore, ref: FrameRef) -> Frame:
    return Batch.loads(_checked(store, ref.batch))[ref.index]


def _checked(store: FolderStore, ref: Ref) -> bytes:
    data = store.get(ref.uri)
    assert Ref.to(ref.uri, data) == ref
    return data


def test_every_reference_leads_to_its_frame(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    event = submit(spec(), gathered, recipe, store, 100.0)
    assert event.id == stable_id("campaign", NAME)
    assert decode(encode(event)) == event
    assert Spec.model_validate_json(_checked(store, event.spec)) == spec()
    assert event.atoms == {"a": 5}
    for refs, frames in (
        (event.frames, gathered.initial),
        (event.systems["a"], gathered.systems["a"]),
    ):
        assert [ref.key for ref in refs] == [frame_key(frame) for frame in frames]
        assert [frame_key(frame_of(store, ref)) for ref in refs] == [ref.key for ref in refs]


def test_packs_hold_every_label_once(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    event = submit(spec(), gathered, recipe, store, 100.0)
    assert event.pack_frames == 4
    packs = [Batch.loads(_checked(store, ref)) for ref in event.packs]
    found = {
        float(pack.arrays["energy"][i]): (pack[i], pack.arrays["forces"][i], pack.arrays)
        for pack in packs
        for i in range(len(pack))
    }
    for frame, label in gathered.labelled:
        stored, forces, arrays = found[label.energy]
        assert frame_key(stored) == frame_key(frame)
        assert np.array_equal(forces, label.forces)
        assert ("virial" in arrays) == (label.virial is not None)
    assert event.test is not None
    manifest = Dataset.model_validate_json(_checked(store, event.test))
    assert [len(Batch.loads(_checked(store, ref))) for ref in manifest.packs] == [1]


def test_the_seed_chooses_the_imported_labels_that_are_computed_again(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    assert submit(spec(), gathered, recipe, store, 100.0).cross_check is None
    fresh = FolderStore(store.root / "fresh")
    begun = FirstChecks(Path("campaign.yaml"), True, False).passed(spec(), gathered)
    chosen = submit(spec(), begun, recipe, fresh, 100.0).cross_check
    assert chosen is not None
    assert chosen.forces == force_tolerance(gathered, spec())
    assert len({each.frame.key for each in chosen.labels}) == begun.compared == 4
    for each in chosen.labels:
        frame, label, _ = decode_labelled(_checked(fresh, each.label))
        assert frame_key(frame) == frame_key(frame_of(fresh, each.frame)) == each.frame.key
        known = {frame_key(f): known for f, known in gathered.labelled}[each.frame.key]
        assert np.array_equal(label.forces, known.forces)


def test_single_points_of_reference_trajectories_use_the_label_budget(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    reference = {"system": "a", "trajectories": 1, "frames": 1, "spacing": 0.01, "equilibrate": 0}
    wanted = spec(verification={"reference_md": reference})
    event = submit(wanted, gathered, recipe, store, 100.0)
    assert event.reference_points == 1 + 10 + 1
    before = event.model_copy(update={"reference_points": 0})
    left, left_before = (apply(State(spec=wanted), each).label_room for each in (event, before))
    assert left_before - left == event.reference_points


def test_the_default_budget_holds_the_default_reference_trajectories(gathered: Gathered) -> None:
    wanted = spec(verification={"reference_md": {"system": "a"}})
    assert wanted.verification.reference_points == 7060
    assert wanted.budget.labels - wanted.verification.reference_points > 2000
    FirstChecks(Path("campaign.yaml"), True, False).passed(wanted, gathered)


def test_a_campaign_keeps_the_time_step_that_was_the_default(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    before = spec(verification={"reference_md": {"system": "a", "timestep": 0.0005}})
    first = submit(before, gathered, recipe, store, 100.0)
    now = spec(verification={"reference_md": {"system": "a"}})
    again = submit(now, gathered, recipe, store, 200.0)
    assert again == first
    assert stored_spec(store, before.name).verification == before.verification
    other = spec(verification={"reference_md": {"system": "a", "timestep": 0.002}})
    with pytest.raises(SpecError, match="spec: changed: verification"):
        submit(other, gathered, recipe, store, 200.0)


def test_again_is_the_same_event_and_writes_nothing(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    first = submit(spec(), gathered, recipe, store, 100.0)
    before = list(store.list(""))
    assert encode(submit(spec(), gathered, recipe, store, 999.0)) == encode(first)
    assert list(store.list("")) == before


def test_a_submission_cut_short_is_completed(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    first = submit(spec(), gathered, recipe, store, 100.0)
    store.delete(f"campaigns/{NAME}/submitted.json")
    store.delete(first.frames[0].batch.uri)
    assert submit(spec(), gathered, recipe, store, 100.0) == first
    assert frame_of(store, first.frames[0]).formula == "C1H4"


CHANGES: list[tuple[Mapping[str, Any], str]] = [
    ({"seed": 2}, "seed 1 → 2"),
    (
        {"md": {"timestep": 0.002}},
        "changed: md.timestep 0.001 → 0.002; change its plan",
    ),
    ({"trust": {"low": 0.2, "high": 0.3}}, "trust.low 0.1 → 0.2"),
    ({"type_map": ["H", "C"]}, 'type_map ["C", "H"] → ["H", "C"]'),
    ({"training": {"input": {"loss": {"start_pref_f": 1}}}}, "training.input.loss.start_pref_f"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_another_spec_of_the_same_name_is_refused(
    gathered: Gathered, recipe: Recipe, store: FolderStore, change: Mapping[str, Any], named: str
) -> None:
    submit(spec(), gathered, recipe, store, 100.0)
    with pytest.raises(SpecError) as caught:
        submit(spec(**change), gathered, recipe, store, 100.0)
    text = str(caught.value)
    assert text.startswith(f"campaign {NAME} already exists with a different spec: changed: ")
    assert named in text
    assert text.endswith("dpstream amend NAME SPEC), or choose another name")


def test_auto_is_the_number_that_an_earlier_release_stored(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    first = submit(spec(training={"batch_atoms": 32}), gathered, recipe, store, 100.0)
    assert submit(spec(), gathered, recipe, store, 200.0) == first
    with pytest.raises(SpecError, match=r"training.batch_atoms 32 → 64"):
        submit(spec(training={"batch_atoms": 64}), gathered, recipe, store, 200.0)


def test_other_inputs_of_the_same_name_are_refused(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    submit(spec(), gathered, recipe, store, 100.0)
    moved = canonical(Frame(("C",), np.ones((1, 3)))).frame
    for other, named in (
        (replace(gathered, systems={"a": [moved]}), "the structures of systems changed"),
        (replace(gathered, initial=gathered.initial[1:]), "the initial frames changed"),
        (replace(gathered, labelled=gathered.labelled[1:]), "initial.data changed"),
        (replace(gathered, test=[]), "verification.data changed"),
    ):
        with pytest.raises(SpecError, match=named):
            submit(spec(), other, recipe, store, 100.0)
    newer = recipe.model_copy(update={"version": "99"})
    with pytest.raises(SpecError, match=r"the labeling recipe changed \(tblite .* → tblite 99 "):
        submit(spec(), gathered, newer, store, 100.0)


@pytest.mark.slow
def test_the_ledger_keeps_what_became_of_imported_sets(
    tmp_path: Path, recipe: Recipe, store: FolderStore
) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    good, bad = molecule("CH4"), molecule("CH4")
    for atoms, energy in ((good, -1.0), (bad, np.nan)):
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((5, 3)))
    write(tmp_path / "set.extxyz", [good, bad])
    wanted = spec(initial={"data": ["set.extxyz"]})
    event = submit(wanted, gather(wanted, tmp_path), recipe, store, 100.0)
    (kept,) = decode(encode(event)).imported
    assert (kept.name, kept.found, kept.taken) == ("set.extxyz", 2, 1)
    assert kept.left_out == {"one-energy": 1}
    assert b"imported" not in encode(event.model_copy(update={"imported": ()}))


def test_structures_and_labels_in_another_order_are_the_same_inputs(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    further = canonical(Frame(("C",), np.ones((1, 3)))).frame
    pairs = [*gathered.labelled, (further, FrameLabel(-3.0, np.zeros((1, 3))))]
    begun = replace(gathered, systems={"a": [*gathered.systems["a"], further]}, labelled=pairs)
    first = submit(spec(), begun, recipe, store, 100.0)
    turned = replace(
        begun,
        systems={"a": begun.systems["a"][::-1]},
        labelled=pairs[::-1],
        test=begun.test[::-1],
        initial=begun.initial[:1],
    )
    assert submit(spec(), turned, recipe, store, 200.0) == first
    relabelled = [*pairs[:-1], (further, FrameLabel(-4.0, np.zeros((1, 3))))]
    with pytest.raises(SpecError, match=r"initial\.data changed"):
        submit(spec(), replace(turned, labelled=relabelled), recipe, store, 200.0)


def test_a_spec_written_before_a_key_existed_is_the_same(
    gathered: Gathered, recipe: Recipe, store: FolderStore
) -> None:
    first = submit(spec(), gathered, recipe, store, 100.0)
    body = store.get(first.spec.uri).replace(b'"max_attempts":3,', b"")
    assert body != store.get(first.spec.uri)
    store.put(first.spec.uri, body)
    store.delete(f"campaigns/{NAME}/submitted.json")
    assert submit(spec(), gathered, recipe, store, 100.0).spec == Ref.to(first.spec.uri, body)


def many(count: int) -> Gathered:
    frames = [Frame(("C",) * (1 + i), 2.0 * np.eye(3)[np.zeros(1 + i, int)]) for i in range(count)]
    return Gathered({"a": frames[:1]}, frames[1:], [], [], [])


@pytest.mark.slow
def test_a_submission_goes_over_the_bus_without_its_lists(
    recipe: Recipe, store: FolderStore
) -> None:
    event = submit(spec(), many(1000), recipe, store, 100.0)
    assert store.get(f"campaigns/{NAME}/submitted.json") == event.model_dump_json().encode()
    assert submit(spec(), many(1000), recipe, store, 200.0) == event
    said = announced(event)
    assert len(encode(said)) < 2000
    assert (said.id, said.spec, said.recipe, said.frames) == (event.id, event.spec, recipe, ())


def test_a_campaign_keeps_the_draw_that_was_usual_when_it_began(
    store: FolderStore, gathered: Gathered, recipe: Recipe
) -> None:
    first = submit(spec(selection={"policy": "random"}), gathered, recipe, store, now=1.0)
    assert submit(spec(), gathered, recipe, store, now=2.0) == first
    with pytest.raises(SpecError, match=r'selection\.policy "random" → "diverse"'):
        submit(spec(selection={"policy": "diverse"}), gathered, recipe, store, now=2.0)
