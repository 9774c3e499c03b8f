"""The labeler's handlers on a real store, a real engine child and real codes."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from structlog.testing import capture_logs

from dpstream.services.labeler import handlers, recipes
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.attachments import attached
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.handlers import HANDLERS, check_label, label, reference
from dpstream.services.labeler.known_labels import check_key
from dpstream.services.labeler.recipes import make_recipe
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.labeler.runner import run_files
from dpstream.services.labeler.signatures import Signers, new_key, public_key, sign
from dpstream.shared.atoms.electron_temperature import heated
from dpstream.shared.atoms.frames import (
    Batch,
    Frame,
    canonical,
    decode_labelled,
    encode_labelled,
    frame_key,
    from_ase,
)
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import encode
from dpstream.shared.errors import (
    EngineCrashed,
    EngineKilled,
    ParserFailed,
    Permanent,
    SpecError,
    Stopped,
)
from dpstream.shared.messages import CheckLabel, Command, Label, LabelsDone, Message, Reference
from dpstream.shared.runtime.child_process import ChildProcess, Limits
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.parser import MIB
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.spec.dimers import dimer_frames
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import SIGNERS, FrameRef, Ref, label_uri
from tests.support.programs.labeling_programs import require
from tests.support.programs.pair_program import PairProgram
from tests.support.programs.qe_keywords import COARSE, LDA, SILICON

SILICON_SETTINGS = {**COARSE, "pseudopotentials": {"Si": LDA["Si"]}}
EMT = {"code": "ase", "settings": {"calculator": "ase.calculators.emt.EMT"}}


def make_spec(labels: dict[str, Any], **verification: Any) -> Spec:
    hot = {"model": {"fitting_net": {"numb_fparam": 1}}} if "electron_temperature" in labels else {}
    return Spec.model_validate(
        {
            "name": "demo",
            "type_map": ["H", "C", "O", "Cu", "Al", "Si"],
            "systems": {"s": {"structures": ["s.xyz"], "fparam": [300.0] if hot else []}},
            "initial": {"perturb": {}},
            "training": {"input": hot},
            "stages": [{"name": "one", "systems": ["s"], "temperatures": [300]}],
            "labels": labels,
            "verification": verification,
        }
    )


def methanes(count: int, seed: int = 0, size: float = 0.05) -> list[Frame]:
    frames = []
    for number in range(count):
        atoms = molecule("CH4")
        atoms.rattle(size, seed=seed + number)
        frames.append(canonical(from_ase(atoms)).frame)
    return frames


@dataclass
class Lab:
    """One store and one bench; every call is a task of its own."""

    store: FolderStore
    resources: LabelerResources
    root: Path
    tasks: int = 0

    def put(self, name: str, data: bytes) -> Ref:
        ref = Ref.to(f"campaigns/demo/{name}", data)
        self.store.create(ref.uri, data)
        return ref

    def refs(self, frames: list[Frame]) -> tuple[FrameRef, ...]:
        data = Batch.of(frames).dumps()
        batch = self.put(f"batches/{Ref.to('x', data).sha256}.npz", data)
        return tuple(FrameRef(batch=batch, index=i, key=frame_key(f)) for i, f in enumerate(frames))

    def envelope(self, spec: Spec) -> dict[str, Any]:
        self.tasks += 1
        body = spec.model_dump_json().encode()
        return {
            "id": f"id-{self.tasks}",
            "campaign": "demo",
            "time": 0.0,
            "task": f"task-{self.tasks}",
            "title": "test",
            "max_seconds": 600.0,
            "spec": self.put(f"specs/{self.tasks}.json", body),
            "capability": spec.labels.code,
            "recipe": make_recipe(spec.labels).digest,
        }

    def context(self, command: Command) -> Context:
        scratch = self.root / command.task
        scratch.mkdir()
        return Context(self.store, InProcessBus(), command, scratch, "worker-1", threading.Event())

    def label(self, labels: dict[str, Any], refs: tuple[FrameRef, ...]) -> LabelsDone:
        return whole(self.chunks(Label(**self.envelope(make_spec(labels)), frames=refs)))

    def chunks(
        self, command: Label, on_published: Callable[[LabelsDone], None] = lambda chunk: None
    ) -> list[LabelsDone]:
        """All results of a task."""
        context, found = self.context(command), list[LabelsDone]()

        def publish(event: Message) -> None:
            assert isinstance(event, LabelsDone)
            encode(event)
            found.append(event)
            on_published(event)

        context.publish = publish  # type: ignore[method-assign]
        publish(label(self.resources, command, context))
        return found

    def rules(self, labels: dict[str, Any], frames: list[Frame]) -> list[str]:
        done = self.label(labels, self.refs(frames))
        assert len(done.accepted) + len(done.rejected) == len(frames)
        return [verdict.rule for verdict in done.rejected]


def whole(chunks: Sequence[LabelsDone]) -> LabelsDone:
    """All chunks as one: how many there are depends on how long frames take."""
    accepted = tuple(each for chunk in chunks for each in chunk.accepted)
    rejected = tuple(each for chunk in chunks for each in chunk.rejected)
    return chunks[-1].model_copy(update={"accepted": accepted, "rejected": rejected})


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelerResources]:
    resources = LabelerResources(tmp_path_factory.mktemp("bench"))
    resources.start()
    yield resources
    resources.close()


@pytest.fixture
def lab(resources: LabelerResources, tmp_path: Path) -> Lab:
    return Lab(FolderStore(tmp_path / "store"), resources, tmp_path)


def test_equal_atoms_with_other_electrons_have_labels_of_their_own(lab: Lab) -> None:
    """Each at its temperature, kept apart, found again; a frame without one is no label."""
    frame, labels = methanes(1)[0], {"electron_temperature": "fparam"}
    refs = lab.refs([heated(frame, "fparam", kelvin) for kelvin in (300.0, 20000.0)])
    done = lab.label(labels, refs)
    cold, hot = (decode_labelled(lab.store.get(each.label.uri))[1] for each in done.accepted)
    assert cold.energy - hot.energy > 0.1
    assert [each.reused for each in lab.label(labels, refs).accepted] == [True, True]
    plain = lab.label({}, lab.refs([frame])).accepted[0]
    assert plain.label.uri not in {each.label.uri for each in done.accepted}
    assert decode_labelled(lab.store.get(plain.label.uri))[1].energy == cold.energy
    assert lab.rules(labels, [frame]) == ["electron-temperature"]


def test_a_campaign_under_way_keeps_a_keyword_that_no_campaign_may_begin_with(lab: Lab) -> None:
    require("qe")
    settings = {**SILICON_SETTINGS, "control": {"max_seconds": 100}}
    given = LabelSettings(code="qe", settings=settings)
    labels, files = recipes.read_files(given, Path())
    assert "max_seconds: remove it" in str(recipes.unlabelable(labels))
    for each in attached(labels.settings):
        lab.store.create(each.ref("demo").uri, files[each.sha256])
    done = lab.label(labels.model_dump(), lab.refs([canonical(SILICON).frame]))
    assert (len(done.accepted), done.rejected) == (1, ())


def test_a_bundle_is_labelled_with_its_provenance(lab: Lab) -> None:
    frames = methanes(3)
    done = lab.label({}, lab.refs(frames))
    assert done.rejected == ()
    for frame, accepted in zip(frames, done.accepted, strict=True):
        data = lab.store.get(accepted.label.uri)
        assert Ref.to(accepted.label.uri, data) == accepted.label
        stored, made, provenance = decode_labelled(data)
        assert (stored.positions == frame.positions).all()
        assert made.energy == pytest.approx(-113.6, abs=2)
        assert made.virial is None
        assert accepted.max_force == pytest.approx(np.linalg.norm(made.forces, axis=1).max())
        assert not accepted.reused
        assert provenance["method"] == "GFN2-xTB"
        assert provenance["semi_empirical"] is True
        assert provenance["frame"] == accepted.key
        assert provenance["program"] == metadata.version("tblite")
        assert provenance["worker"] == "worker-1"
        assert 0 < provenance["seconds"] < 5


def test_a_periodic_label_has_a_virial_and_a_warning(lab: Lab) -> None:
    water = molecule("H2O", cell=np.diag([6.0, 6.5, 9.0]), pbc=True)
    done = lab.label({}, lab.refs([canonical(from_ase(water)).frame]))
    _, made, provenance = decode_labelled(lab.store.get(done.accepted[0].label.uri))
    assert made.virial is not None
    assert made.virial.shape == (3, 3)
    assert "Gamma" in provenance["warnings"][0]


def test_a_known_label_is_reused_and_not_written_again(lab: Lab) -> None:
    frames = methanes(3)
    first = lab.label({}, lab.refs(frames[:2]))
    again = lab.label({}, lab.refs(frames))
    assert [a.reused for a in again.accepted] == [True, True, False]
    assert [a.label for a in again.accepted[:2]] == [a.label for a in first.accepted]
    assert len(list(lab.store.list("labels/"))) == 3


def test_dimers_are_close_on_purpose(lab: Lab) -> None:
    """What is rejected as too close anywhere else, and by a cap of its own for its force."""
    section = {"pairs": ["H-H"], "distances": [0.15, 0.4], "max_force": 400.0}
    data = make_spec({"multiplicity": 1}).model_dump()
    data["initial"]["dimers"] = section
    spec = Spec.model_validate(data)
    assert spec.initial.dimers is not None
    frames = dimer_frames(spec.initial.dimers, spec.type_map)["H-H"]
    close = canonical(Frame(("H", "H"), np.array([[0.0, 0, 0], [0.3, 0, 0]]))).frame
    command = Label(**lab.envelope(spec), frames=lab.refs([*frames, close]))
    done = whole(lab.chunks(command))
    assert [accepted.key for accepted in done.accepted] == [frame_key(frames[1])]
    assert 50 < done.accepted[0].max_force < 400
    assert [(r.key, r.rule) for r in done.rejected] == [
        (frame_key(frames[0]), "max-force"),
        (frame_key(close), "min-distance"),
    ]


def broken_bench(scratch: Path) -> LabelerResources:
    resources = LabelerResources(scratch)
    resources.engine = ChildProcess("no.such.module", scratch)
    return resources


def test_reuse_needs_no_engine(lab: Lab, tmp_path: Path) -> None:
    frames = methanes(2)
    lab.label({}, lab.refs(frames))
    lab.resources = broken_bench(tmp_path / "none")
    done = lab.label({}, lab.refs(frames))
    assert all(a.reused for a in done.accepted)
    assert lab.resources.engine.pid is None


def test_no_frame_is_blamed_for_a_broken_worker(lab: Lab, tmp_path: Path) -> None:
    lab.resources = broken_bench(tmp_path / "none")
    with pytest.raises(EngineCrashed, match=r"no\.such|No module"):
        lab.label({}, lab.refs(methanes(1)))


def test_a_cached_label_above_a_stricter_cap_is_rejected(lab: Lab) -> None:
    frames = methanes(1, size=0.1)
    accepted = lab.label({}, lab.refs(frames)).accepted[0]
    done = lab.label({"max_force": accepted.max_force * 0.9}, lab.refs(frames))
    assert [r.rule for r in done.rejected] == ["max-force"]
    assert len(lab.label({"max_force": accepted.max_force * 1.1}, lab.refs(frames)).accepted) == 1


WRONG = {
    "no JSON": lambda data: b"\xff{",
    "a list": lambda data: b"[]",
    "another frame": lambda data: data.replace(b'"positions": [[', b'"positions": [[1', 1),
    "other species": lambda data: data.replace(b'"H", "H"]', b'"H", "F"]'),
    "another recipe": lambda data: data.replace(b'"recipe": "', b'"recipe": "0', 1),
    "no number": lambda data: re.sub(rb'"energy": [^,]+', b'"energy": NaN', data),
    "too few forces": lambda data: re.sub(rb'"forces": \[\[[^]]+\], ', b'"forces": [', data),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_label_is_not_used_again(lab: Lab, change: Callable[[bytes], bytes]) -> None:
    frames = methanes(1)
    right = lab.label({}, lab.refs(frames)).accepted[0]
    data = lab.store.get(right.label.uri)
    wrong = change(data)
    assert wrong != data
    lab.store.put(right.label.uri, wrong)
    anew, again = (lab.label({}, lab.refs(frames)).accepted[0] for _ in range(2))
    assert (anew.reused, again.reused) == (False, True)
    assert anew.label == again.label
    assert anew.label.uri != right.label.uri
    assert decode_labelled(lab.store.get(anew.label.uri))[1].energy == pytest.approx(
        decode_labelled(data)[1].energy
    )
    assert lab.store.get(right.label.uri) == wrong


@pytest.fixture
def signing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> str:
    """The private key with which the labeler signs as `vasp`."""
    key = new_key()
    monkeypatch.setattr(lab.resources, "signing_key", key)
    lab.store.put(SIGNERS, Signers(keys={public_key(key): "vasp"}).model_dump_json().encode())
    return key


def test_a_signed_label_names_its_writer_when_it_is_used_again(lab: Lab, signing: str) -> None:
    refs = lab.refs(methanes(1))
    first, again = (lab.label({}, refs).accepted[0] for _ in range(2))
    assert (first.reused, first.writer, again.reused, again.writer) == (False, None, True, "vasp")
    assert again.label == first.label


def test_a_labeler_whose_key_the_store_does_not_list_does_not_start(lab: Lab, signing: str) -> None:
    check_key(signing, lab.store)
    with pytest.raises(SpecError, match=r"lacks this worker's key: copy the file"):
        check_key(new_key(), lab.store)
    with capture_logs() as logged:
        check_key(None, lab.store)
    assert "DPSTREAM_LABELER_SIGNING_KEY" in logged[0]["event"]
    lab.store.put(SIGNERS, b"{")
    with pytest.raises(SpecError, match=r"label-signers\.json in the store"):
        check_key(signing, lab.store)
    lab.store.delete(SIGNERS)
    check_key(signing, lab.store)


FORGED = {
    "energy": lambda data: re.sub(rb'"energy": -', b'"energy": -1', data),
    "virial": lambda data: data.replace(b'"virial": null', b'"virial": [[0,0,0],[0,0,0],[0,0,0]]'),
    "signature": lambda data: re.sub(rb'"ed25519": ".', b'"ed25519": "x', data),
    "no key": lambda data: re.sub(rb'"key": "[^"]*"', b'"key": []', data),
    "another key": lambda data: sign(
        json.dumps({**json.loads(data), "energy": 0.0}).encode(), new_key()
    ),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_label_is_not_used_again(
    lab: Lab, signing: str, forge: Callable[[bytes], bytes]
) -> None:
    refs = lab.refs(methanes(1))
    right = lab.label({}, refs).accepted[0]
    forged = forge(lab.store.get(right.label.uri))
    lab.store.put(right.label.uri, forged)
    with capture_logs() as logged:
        anew, again = (lab.label({}, refs).accepted[0] for _ in range(2))
    assert (anew.reused, again.reused, again.writer) == (False, True, "vasp")
    assert anew.label.uri != right.label.uri
    assert anew.energy == pytest.approx(right.energy)
    assert any("signature" in line.get("reason", "") for line in logged)


@pytest.mark.parametrize("reuse", [True, False])
def test_labels_without_signature_are_used_as_the_worker_is_set(
    lab: Lab, signing: str, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    refs = lab.refs(methanes(1))
    monkeypatch.setattr(lab.resources, "signing_key", None)
    lab.label({}, refs)
    monkeypatch.setattr(lab.resources, "reuse_unsigned", reuse)
    found = lab.label({}, refs).accepted[0]
    assert (found.reused, found.writer) == (reuse, None)


@pytest.mark.parametrize("shift", [0.0, 1e-5, 0.1])
def test_a_reused_label_is_computed_again_and_compared(lab: Lab, shift: float) -> None:
    (ref,) = lab.refs(methanes(1))
    label = lab.label({}, (ref,)).accepted[0].label
    frame, made, provenance = decode_labelled(lab.store.get(label.uri))
    forces = made.forces + shift * np.eye(5, 3)
    body = encode_labelled(frame, replace(made, forces=forces), provenance)
    wrong = lab.put("wrong.json", body)
    command = CheckLabel(**lab.envelope(make_spec({})), frame=ref, label=wrong)
    checked = check_label(lab.resources, command, lab.context(command))
    assert checked.forces == pytest.approx(shift, abs=1e-6)
    assert checked.energy == pytest.approx(0.0, abs=1e-6)
    assert (
        ("differ by up to 0.1 eV/Å" in checked.differs) == bool(checked.differs) == (shift > 1e-3)
    )


def test_a_label_that_cannot_be_computed_again_says_nothing_of_the_reused_one(lab: Lab) -> None:
    (ref,) = lab.refs(methanes(1))
    label = lab.label({}, (ref,)).accepted[0].label
    spec = make_spec({"settings": {"max_iterations": 1}})
    command = CheckLabel(**lab.envelope(spec), frame=ref, label=label)
    checked = check_label(lab.resources, command, lab.context(command))
    assert (checked.forces, checked.energy, checked.differs) == (None, None, "")
    assert "converged" in checked.rejected


def test_an_imported_label_of_a_frame_that_is_not_computed_is_rejected_with_the_reason(
    lab: Lab,
) -> None:
    (ref,) = lab.refs(methanes(1))
    label = lab.label({}, (ref,)).accepted[0].label
    spec = make_spec({"min_distance": 2.0})
    command = CheckLabel(**lab.envelope(spec), frame=ref, label=label)
    checked = check_label(lab.resources, command, lab.context(command))
    assert (checked.forces, checked.opposed) == (None, None)
    assert checked.rejected.startswith("min-distance: ")


def test_another_recipe_shares_nothing(lab: Lab) -> None:
    frames = methanes(1)
    one = lab.label({}, lab.refs(frames)).accepted[0]
    other = lab.label({"settings": {"method": "GFN1-xTB"}}, lab.refs(frames)).accepted[0]
    assert not other.reused
    assert one.label.uri != other.label.uri


def test_the_winner_of_a_race_stands(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = methanes(1)
    key = frame_key(frames[0])
    winner = lab.label({}, lab.refs(frames)).accepted[0]
    monkeypatch.setattr(
        "dpstream.services.labeler.labeling.FrameLabeler._existing",
        lambda labeler, key, recipe: None,
    )
    loser = lab.label({}, lab.refs(frames)).accepted[0]
    assert loser.label == winner.label
    assert loser.reused
    assert list(lab.store.list("labels/")) == [
        label_uri(make_recipe(make_spec({}).labels).digest, key)
    ]


def test_bad_frames_are_rejections_and_the_rest_is_labelled(lab: Lab) -> None:
    good, overlap, coincident, far = methanes(4)
    overlap = moved(overlap, 1, overlap.positions[0] + [0.3, 0, 0])
    coincident = moved(coincident, 1, coincident.positions[0])
    done = lab.label({"max_force": 20}, lab.refs([overlap, good, coincident, far]))
    assert [r.rule for r in done.rejected] == ["min-distance", "min-distance"]
    assert "0.300 Å" in done.rejected[0].detail
    assert [a.key for a in done.accepted] == [frame_key(good), frame_key(far)]
    assert all(r.seconds == 0 for r in done.rejected)


def moved(frame: Frame, atom: int, to: Any) -> Frame:
    positions = frame.positions.copy()
    positions[atom] = to
    return canonical(replace(frame, positions=positions)).frame


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        ({"settings": {"max_iterations": 1}}, "not-converged"),
        ({"code": "pyscf", "settings": {"max_cycle": 1}}, "not-converged"),
        ({"multiplicity": 2}, "electron-parity"),
        ({"charge": 1}, "electron-parity"),
        ({"max_force": 0.01}, "max-force"),
        ({"min_distance": 1.5}, "min-distance"),
        (EMT, "exit-status"),  # EMT's answer to carbon is a KeyError or the like
        ({"code": "pyscf", "settings": {"basis": "no-such-basis"}}, "unsupported-element"),
    ],
)
def test_why_methane_is_rejected(lab: Lab, labels: dict[str, Any], rule: str) -> None:
    if labels is EMT:
        frames = [replace(methanes(1)[0], species=("Cu", "He", "He", "He", "He"))]
        assert lab.rules(labels, [canonical(frames[0]).frame]) == [rule]
    else:
        assert lab.rules(labels, methanes(1)) == [rule]
    assert list(lab.store.list("labels/")) == []


def test_why_other_frames_are_rejected(lab: Lab) -> None:
    metal = [canonical(from_ase(bulk("Al"))).frame]
    assert lab.rules({"multiplicity": 2}, metal) == ["refused"]
    assert lab.rules({"code": "pyscf"}, metal) == ["periodicity"]
    francium = [Frame(("Fr", "H"), np.array([[0, 0, 0], [0, 0, 2.5]]))]
    assert lab.rules({}, francium) == ["unsupported-element"]
    assert lab.rules({"force": True, "multiplicity": 2}, metal) == []


def test_a_frame_that_is_not_what_its_reference_says(lab: Lab) -> None:
    frames = methanes(2)
    first, second = lab.refs(frames)
    swapped = first.model_copy(update={"key": second.key})
    beyond = first.model_copy(update={"index": 7})
    done = lab.label({}, (swapped, beyond, second))
    assert [r.rule for r in done.rejected] == ["frame-key", "frame-key"]
    assert len(done.accepted) == 1


def test_another_version_is_refused_naming_it(lab: Lab) -> None:
    spec = make_spec({})
    envelope = lab.envelope(spec) | {"recipe": "0123456789abcdef"}
    command = Label(**envelope, frames=lab.refs(methanes(1)))
    with pytest.raises(Permanent, match=r"tblite 0\..*0123456789abcdef"):
        label(lab.resources, command, lab.context(command))


def test_a_calculator_outside_the_allow_list_is_refused(lab: Lab, tmp_path: Path) -> None:
    copper = [canonical(from_ase(bulk("Cu", cubic=True))).frame]
    assert lab.rules(EMT, copper) == []
    lab.resources = LabelerResources(tmp_path / "strict", allowed_calculators=frozenset())
    with pytest.raises(Permanent, match=r"ase\.calculators\.emt\.EMT is not in this worker's"):
        lab.rules(EMT, copper)


def test_a_code_outside_the_allow_list_is_refused(lab: Lab, tmp_path: Path) -> None:
    lab.resources = LabelerResources(tmp_path / "strict", allowed_codes=("pyscf",))
    with pytest.raises(Permanent, match="tblite is not in this worker's"):
        lab.rules({}, methanes(1))


def test_a_campaign_may_not_name_a_program_except_at_home(lab: Lab, tmp_path: Path) -> None:
    arguments = {"command": "touch owned"}
    named = {"calculator": "ase.calculators.mopac.MOPAC", "arguments": arguments}
    labels = make_spec({"code": "ase", "settings": named}).labels
    recipe = make_recipe(labels)
    listed = frozenset({"ase.calculators.mopac.MOPAC"})
    strict = LabelerResources(tmp_path / "strict", allowed_calculators=listed)
    assert (
        strict.refusal(recipe)
        == "labels.settings.arguments.command: not allowed; it names a program or folder"
    )
    lab.resources = strict
    command = Label(**lab.envelope(make_spec({"code": "ase", "settings": named})), frames=())
    with pytest.raises(Permanent, match=r"arguments\.command"):
        label(lab.resources, command, lab.context(command))
    assert LabelerResources.for_local_run(tmp_path / "home", labels).refusal(recipe) is None


def test_what_is_wrong_with_the_recipe_ends_the_task(lab: Lab) -> None:
    with pytest.raises(Permanent, match="PBEE"):
        lab.label({"code": "pyscf", "settings": {"xc": "pbee"}}, lab.refs(methanes(1)))


def test_a_killed_engine_costs_nothing_but_time(lab: Lab) -> None:
    lab.label({"code": "pyscf"}, lab.refs(methanes(1, seed=50)))
    victim = lab.resources.engine.pid
    assert victim is not None
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    done = lab.label({"code": "pyscf"}, lab.refs(methanes(2)))
    assert len(done.accepted) == 2
    assert lab.resources.engine.pid != victim


def test_a_frame_whose_program_is_killed_on_two_machines_is_rejected(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **settings: Any) -> Any:
        raise EngineKilled("pair was killed, probably because it ran out of memory on spot")

    monkeypatch.setitem(CODES, "pair", PairProgram())
    monkeypatch.setattr("dpstream.services.labeler.labeling.run_files", killed)
    copper = canonical(from_ase(bulk("Cu", a=3.6, cubic=True))).frame
    command = Label(**lab.envelope(make_spec({"code": "pair"})), frames=lab.refs([copper]))
    context = lab.context(command)
    with pytest.raises(EngineKilled):
        label(lab.resources, command, context)
    second = replace(context, command=command.model_copy(update={"attempt": 2}))
    (rejected,) = label(lab.resources, command, second).rejected
    assert rejected.rule == "out-of-memory"
    assert "on spot" in rejected.detail


def test_a_frame_that_takes_too_long_is_rejected_alone(lab: Lab) -> None:
    known = methanes(2)
    lab.label({"code": "pyscf"}, lab.refs(known[1:]))
    lab.resources.engine.kill()
    done = lab.label({"code": "pyscf", "max_seconds": 0.01}, lab.refs(known))
    assert [r.rule for r in done.rejected] == ["crashed"]
    assert "time limit" in done.rejected[0].detail
    assert [a.key for a in done.accepted] == [frame_key(known[1])]


def test_a_stopped_task_ends_between_frames_and_keeps_its_labels(lab: Lab) -> None:
    frames = methanes(3)
    command = Label(**lab.envelope(make_spec({})), frames=lab.refs(frames))
    context = lab.context(command)
    context.progress = lambda text: context.stopping.set() if "3 of" in text else None  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        label(lab.resources, command, context)
    done = lab.label({}, lab.refs(frames))
    assert [a.reused for a in done.accepted] == [True, True, False]


@pytest.mark.parametrize("slow", [True, False])
def test_the_labels_of_a_slow_library_are_published_frame_by_frame(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.setattr(handlers, "CHUNK_SECONDS", 0.0 if slow else 60.0)
    frames, stored = methanes(3), list[int]()
    command = Label(**lab.envelope(make_spec({})), frames=lab.refs(frames))
    found = lab.chunks(command, lambda chunk: stored.append(len(list(lab.store.list("labels/")))))
    facts = [(each.chunk, each.last, len(each.accepted)) for each in found]
    assert facts == ([(0, False, 1), (1, False, 1), (2, True, 1)] if slow else [(0, True, 3)])
    assert stored == ([1, 2, 3] if slow else [3]), "published before the next frame is computed"
    assert [each.key for each in whole(found).accepted] == [frame_key(frame) for frame in frames]


def reference_command(lab: Lab, labels: dict[str, Any], **changes: Any) -> Reference:
    plan = {
        "system": "s",
        "frames": 3,
        "spacing": 0.02,
        "equilibrate": 0.02,
        "trajectories": 1,
    } | changes
    envelope = lab.envelope(make_spec(labels, reference_md=plan))
    structure = lab.refs(methanes(1, size=0.0))[0]
    return Reference(**envelope, structure=structure, trajectory=4, seed=9)


def test_reference_frames_are_a_labelled_pack(lab: Lab) -> None:
    command = reference_command(lab, {})
    context = lab.context(command)
    done = reference(lab.resources, command, context)
    assert (done.trajectory, done.frames) == (4, 3)
    pack = Batch.loads(context.fetch(done.pack))
    assert pack.arrays["energy"].shape == (3,)
    assert pack.arrays["forces"].shape == (3, 5, 3)
    assert "virial" not in pack.arrays
    labelled = lab.label({}, lab.refs(list(pack)))
    for index, accepted in enumerate(labelled.accepted):
        _, made, _ = decode_labelled(lab.store.get(accepted.label.uri))
        assert made.energy == pack.arrays["energy"][index]
        assert (made.forces == pack.arrays["forces"][index]).all()


def test_reference_dynamics_that_breaks_down_is_permanent(lab: Lab) -> None:
    command = reference_command(lab, {"settings": {"max_iterations": 2}})
    with pytest.raises(Permanent, match="not-converged"):
        reference(lab.resources, command, lab.context(command))


@pytest.fixture
def program(resources: LabelerResources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODES, "pair", PairProgram())
    monkeypatch.setattr(resources.parser.child, "module", "tests.support.programs.pair_parsing")
    resources.parser.close()
    monkeypatch.setenv("SECRET", "amqp://user:password@broker")
    assert recipes.CODES is CODES


@pytest.mark.usefixtures("program")
def test_a_program_passes_the_same_contract(lab: Lab) -> None:
    atoms = bulk("Cu", a=3.5, cubic=True)
    atoms.rattle(0.05, seed=1)
    frame = canonical(from_ase(atoms)).frame
    by_program = lab.label({"code": "pair"}, lab.refs([frame])).accepted[0]
    in_process = lab.label(EMT, lab.refs([frame])).accepted[0]
    one, other = (decode_labelled(lab.store.get(a.label.uri))[1] for a in (by_program, in_process))
    assert one.energy == pytest.approx(other.energy)
    assert one.virial is not None
    assert other.virial is not None
    np.testing.assert_allclose(one.virial, other.virial, atol=1e-9)


@pytest.mark.usefixtures("program")
def test_the_labels_of_a_program_are_published_frame_by_frame(lab: Lab) -> None:
    frames = [canonical(from_ase(bulk("Cu", a=a, cubic=True))).frame for a in (3.5, 3.6)]
    lab.label({"code": "pair"}, lab.refs(frames[:1]))  # a label that is found takes no time
    found = lab.chunks(Label(**lab.envelope(make_spec({"code": "pair"})), frames=lab.refs(frames)))
    assert [(each.chunk, each.last) for each in found] == [(0, False), (1, True)]
    assert [each.accepted[0].reused for each in found] == [True, False]


@pytest.mark.usefixtures("program")
def test_how_a_program_fails(lab: Lab) -> None:
    dimer = Frame(("Cu", "Cu"), np.array([[0, 0, 0], [2.5, 0, 0]]), np.eye(3) * 9)
    assert lab.rules({"code": "pair"}, [dimer]) == ["exit-status"]
    started = time.monotonic()
    alone = Frame(("Cu",), np.zeros((1, 3)), np.eye(3) * 9)
    assert lab.rules({"code": "pair", "max_seconds": 0.5}, [alone]) == ["crashed"]
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("program")
def test_output_that_never_ends_rejects_its_frame(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(seconds=5.0, memory=64 * MIB, file=MIB)
    monkeypatch.setattr("dpstream.services.labeler.labeling.limits_for", lambda atoms: limits)
    endless = canonical(Frame(("Cu",) * 3, np.diag([0.0, 3.0, 6.0]), np.eye(3) * 9)).frame
    whole = canonical(from_ase(bulk("Cu", a=3.55, cubic=True))).frame
    done = lab.label({"code": "pair"}, [*lab.refs([endless]), *lab.refs([whole])])
    assert [(each.rule, each.detail) for each in done.rejected] == [
        ("unreadable-output", "needs more than 64 MiB of memory")
    ]
    assert len(done.accepted) == 1


@pytest.mark.usefixtures("program")
def test_a_killed_parser_rejects_no_frame_and_computes_none_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Path] = []

    def counted(*args: Any, **options: Any) -> Outcome:
        runs.append(args[3])
        return run_files(*args, **options)

    monkeypatch.setattr("dpstream.services.labeler.labeling.run_files", counted)
    monkeypatch.setattr(lab.resources.parser.child, "module", "tests.support.workers.toy_parser")
    lab.resources.parser.close()
    frame = canonical(from_ase(bulk("Cu", a=3.57, cubic=True))).frame
    with pytest.raises(ParserFailed, match="was killed"):
        lab.label({"code": "pair"}, lab.refs([frame]))
    lab.resources.parser.close()
    assert len(runs) == 1


@pytest.mark.usefixtures("program")
def test_a_program_drives_no_dynamics(lab: Lab) -> None:
    command = reference_command(lab, {"code": "pair"})
    with pytest.raises(Permanent, match="cannot drive dynamics"):
        reference(lab.resources, command, lab.context(command))


def test_every_command_of_the_labeler_has_a_handler() -> None:
    assert set(HANDLERS) == {Label, CheckLabel, Reference}
