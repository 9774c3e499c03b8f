"""What trainings are given beside energies and forces: parameters of frames, weights of atoms,
models to begin from, tables, dimers; carried in canonical order, and checked before the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dpstream.inputs.check_loss import check_loss, loss_warnings
from dpstream.inputs.check_training import check_training
from dpstream.inputs.dimers import gather_dimers
from dpstream.inputs.gather import gather
from dpstream.inputs.read_labelled import Imported, read_labelled
from dpstream.inputs.training_files import given_files
from dpstream.running.submit import Inputs
from dpstream.services.labeler.acceptance import AcceptanceLimits
from dpstream.services.trainer.repulsion import check_table, zbl, zbl_table
from dpstream.shared.atoms.dataset import Labelled, load_dataset, write_deepmd, write_extxyz
from dpstream.shared.atoms.frames import (
    Batch,
    Frame,
    FrameLabel,
    canonical,
    decode_labelled,
    encode_labelled,
    frame_key,
)
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.spec.dimers import dimer_keys
from dpstream.shared.store.folder import FolderStore

pytestmark = pytest.mark.usefixtures("one_parser")

TYPES = [1, 0, 1]
"""H, C, H in a type map of C, H: canonical order moves them."""


def spec(**sections: Any) -> Spec:
    document: dict[str, Any] = {
        "name": "test",
        "type_map": ["C", "H"],
        "systems": {"a": {"structures": ["a.xyz"]}},
        "initial": {"data": ["set"]},
        "stages": [{"name": "warm", "systems": ["a"], "temperatures": [300]}],
    }
    return Spec.model_validate({**document, **sections})


def trained(loss: dict[str, Any] | None = None, **fitting: Any) -> dict[str, Any]:
    """A training section with these keys of the loss and the fitting net."""
    return {"input": {"loss": loss or {}, "model": {"fitting_net": fitting}}}


def columns(frames: int = 3) -> dict[str, Any]:
    """Arrays of a DeePMD system H C H, every number another."""
    rng = np.random.default_rng(3)
    return {
        "coord": rng.normal(size=(frames, 9)),
        "energy": rng.normal(size=frames),
        "force": rng.normal(size=(frames, 9)),
        "fparam": rng.normal(size=(frames, 2)),
        "aparam": rng.normal(size=(frames, 3)),
        "atom_pref": rng.uniform(size=(frames, 3)),
        "atom_ener_coeff": rng.normal(size=(frames, 3)),
    }


def write_system(folder: Path, arrays: dict[str, Any]) -> Path:
    (folder / "set.000").mkdir(parents=True)
    for name, values in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", values)
    np.save(folder / "set.000" / "box.npy", np.tile(np.eye(3).ravel() * 20, (3, 1)))
    (folder / "type.raw").write_text("\n".join(map(str, TYPES)))
    (folder / "type_map.raw").write_text("C\nH\n")
    (folder / "nopbc").touch()
    return folder


def read(folder: Path, name: str = "set") -> list[Imported]:
    return read_labelled([name], folder, ["C", "H"], "initial.data").items


def problem(wanted: Spec, items: list[Imported], test: list[Imported] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        check_loss(wanted, items, test or [])
    return str(caught.value)


# ------------------------------------------------------------------------------ carried along


def write_hdf5(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[f"a/set.000/{name}.npy"] = values
        file["a/set.000/box.npy"] = np.tile(np.eye(3).ravel() * 20, (3, 1))
        file["a/type.raw"] = np.array(TYPES)
        file["a/type_map.raw"] = np.array(["C", "H"], dtype="S")
        file["a/nopbc"] = True


@pytest.mark.parametrize("form", ["npy", "hdf5"])
def test_imported_parameters_and_weights_follow_their_atoms(form: str, tmp_path: Path) -> None:
    arrays = columns()
    if form == "npy":
        write_system(tmp_path / "set", arrays)
    else:
        write_hdf5(tmp_path / "set.hdf5", arrays)
    for row, item in enumerate(read(tmp_path, "set" if form == "npy" else "set.hdf5")):
        assert item.frame.species == ("C", "H", "H")
        order = [1, 0, 2]
        assert item.frame.parameters["fparam"] == pytest.approx(arrays["fparam"][row])
        assert item.frame.parameters["aparam"][:, 0] == pytest.approx(arrays["aparam"][row][order])
        for name in ("atom_pref", "atom_ener_coeff"):
            assert item.label.weights[name] == pytest.approx(arrays[name][row][order])


def test_from_the_file_to_the_training_set_nothing_is_lost(tmp_path: Path) -> None:
    """Import, pack, store, load, write: the same numbers per atom as the user's files."""
    arrays = columns()
    write_system(tmp_path / "set", arrays)
    store = FolderStore(tmp_path / "store")
    manifest = Inputs("t", store.create).dataset([(i.frame, i.label) for i in read(tmp_path)])
    items = load_dataset(lambda ref: store.get(ref.uri), manifest)
    (system,) = write_deepmd(items, tmp_path / "out", ["H", "C"])
    assert system.name == "C1H2-nopbc-fparam2-aparam1-atom_pref-atom_ener_coeff"
    assert (system / "type.raw").read_text().split() == ["0", "0", "1"]
    order = [0, 2, 1]
    written = {name: np.load(system / "set.000" / f"{name}.npy") for name in arrays}
    assert written["fparam"] == pytest.approx(arrays["fparam"])
    for name in ("aparam", "atom_pref", "atom_ener_coeff"):
        assert written[name] == pytest.approx(arrays[name][:, order])
    assert written["force"].reshape(3, 3, 3) == pytest.approx(
        arrays["force"].reshape(3, 3, 3)[:, order]
    )


def test_extxyz_takes_them_along_both_ways(tmp_path: Path) -> None:
    write_system(tmp_path / "set", columns())
    items = read(tmp_path)
    labelled = [Labelled(item.frame, item.label, {}) for item in items]
    write_extxyz(labelled, tmp_path / "set.extxyz")
    for before, after in zip(items, read(tmp_path, "set.extxyz"), strict=True):
        for name, values in {**before.frame.parameters, **before.label.weights}.items():
            found = {**after.frame.parameters, **after.label.weights}[name]
            assert found == pytest.approx(values, abs=1e-7)


def test_arrays_of_some_sets_only_are_refused(tmp_path: Path) -> None:
    write_system(tmp_path / "set", columns())
    plain = {name: values for name, values in columns().items() if name != "atom_pref"}
    write_system(tmp_path / "other", plain)
    (tmp_path / "other" / "set.000").rename(tmp_path / "set" / "set.001")
    with pytest.raises(SpecError, match="Shape of atom_pref is"):
        read(tmp_path)


def test_labels_as_json_keep_them_to_the_bit(tmp_path: Path) -> None:
    write_system(tmp_path / "set", columns())
    item = read(tmp_path)[0]
    frame, label, _ = decode_labelled(encode_labelled(item.frame, item.label, {}))
    assert frame_key(frame) == frame_key(item.frame)
    for name, values in item.label.weights.items():
        assert (label.weights[name] == values).all()


# ------------------------------------------------------------------------------ identity


def frame(**parameters: Any) -> Frame:
    return Frame(("H", "C"), np.array([[0.0, 0, 0], [1.1, 0, 0]])).with_parameters(parameters)


def test_parameters_are_part_of_what_a_frame_is() -> None:
    plain, cold, hot = frame(), frame(fparam=np.array([0.1])), frame(fparam=np.array([0.2]))
    per_atom = frame(aparam=np.array([[0.1], [0.2]]))
    keys = {frame_key(canonical(f).frame) for f in (plain, cold, hot, per_atom)}
    assert len(keys) == 4
    zeros = [frame(fparam=np.array([sign * 0.0])) for sign in (1, -1)]
    assert frame_key(zeros[0]) == frame_key(zeros[1])
    sorted_frame = canonical(per_atom).frame
    assert sorted_frame.parameters["aparam"].tolist() == [[0.2], [0.1]]
    assert frame_key(canonical(sorted_frame).frame) == frame_key(sorted_frame)


def test_a_batch_keeps_parameters_and_mixes_no_kinds() -> None:
    hot, cold = frame(fparam=np.array([0.2])), frame(fparam=np.array([0.1]))
    batch = Batch.loads(Batch.of([hot, cold], time_ps=np.zeros(2)).dumps())
    assert [float(f.parameters["fparam"][0]) for f in batch] == [0.2, 0.1]
    assert frame_key(batch.take([1])[0]) == frame_key(cold)
    with pytest.raises(ValueError, match="same species order, periodicity and parameters"):
        Batch.of([hot, frame()])


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"fparam": np.zeros((1, 1))}, "must be \\(n_fparam,\\)"),
        ({"aparam": np.zeros((3, 1))}, "must be \\(2, n_aparam\\)"),
    ],
)
def test_parameters_of_another_shape_are_refused(parameters: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        frame(**parameters)


def test_parameters_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        canonical(frame(fparam=np.array([np.nan])))


def test_a_system_gives_its_parameters_to_every_structure(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("2\n\nC 0 0 0\nH 0 0 1.1\n")
    system = {"structures": ["a.xyz"], "fparam": [0.5], "aparam": [1.0, 2.0]}
    wanted = spec(
        systems={"a": system},
        initial={"perturb": {"copies": 2}},
        training=trained(numb_fparam=1, numb_aparam=2),
        labels={"multiplicity": 2},
    )
    gathered = gather(wanted, tmp_path)
    for found in [*gathered.systems["a"], *gathered.initial]:
        assert found.parameters["fparam"].tolist() == [0.5]
        assert found.parameters["aparam"].tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert any("not passed to labels.code tblite" in text for text in gathered.warnings)


def test_systems_give_as_many_parameters_as_the_models_take() -> None:
    with pytest.raises(ValueError, match=r"systems\.a\.fparam: 0 numbers, but .* is 2"):
        spec(training=trained(numb_fparam=2))
    with pytest.raises(ValueError, match=r"systems\.a\.aparam: 1 numbers, but .* is 0"):
        spec(systems={"a": {"structures": ["x"], "aparam": [1.0]}})


# ------------------------------------------------------------------------------ losses


def imported(**own: Any) -> Imported:
    parameters = {name: own.pop(name) for name in ("fparam", "aparam") if name in own}
    label = FrameLabel(0.0, np.zeros((2, 3)), **own)
    return Imported(frame(**parameters), label, "data.hdf5")


def test_a_loss_needs_its_data() -> None:
    plain = [imported()]
    pref = spec(training=trained({"start_pref_pf": 100.0}))
    assert "no set in initial.data contains atom_pref.npy" in problem(pref, plain)
    check_loss(pref, [imported(atom_pref=np.ones(2))], [])
    delta = spec(training=trained({"enable_atom_ener_coeff": True}))
    assert "contains atom_ener_coeff.npy" in problem(delta, plain)
    check_loss(delta, [imported(atom_ener_coeff=np.ones(2))], [])
    for term, name in (("ae", "atom_ener"), ("gf", "drdq")):
        wanted = spec(training=trained({f"limit_pref_{term}": 1.0}))
        assert f"needs {name}.npy, which dpstream does not support" in problem(wanted, plain)


def test_weighted_energies_are_never_misread() -> None:
    weighted = [imported(atom_ener_coeff=np.ones(2))]
    assert "data.hdf5: contains atom_ener_coeff" in problem(spec(), weighted)
    delta = spec(training=trained({"enable_atom_ener_coeff": True}))
    assert "tested on total energies" in problem(delta, weighted, weighted)
    one_without = {1: {"loss": {"enable_atom_ener_coeff": False}}}
    mixed = spec(
        training={**trained({"enable_atom_ener_coeff": True}), "member_input": one_without}
    )
    assert "for every member" in problem(mixed, weighted)


def test_imported_frames_have_the_parameters_that_the_models_take() -> None:
    system = {"structures": ["a.xyz"], "fparam": [0.5]}
    wanted = spec(systems={"a": system}, training=trained(numb_fparam=1))
    assert "has 0 values of fparam, but" in problem(wanted, [imported()])
    assert "has 2 values of fparam, but" in problem(wanted, [imported(fparam=np.ones(2))])
    check_loss(wanted, [imported(fparam=np.ones(1))], [])


def test_what_may_not_be_meant_is_said() -> None:
    def said(wanted: Spec, item: Imported) -> str:
        return "\n".join(loss_warnings(wanted, [item]))

    assert said(spec(), imported()) == ""
    assert "atom_pref is not used" in said(spec(), imported(atom_pref=np.ones(2)))
    assert "fparam is not used" in said(spec(), imported(fparam=np.ones(2)))
    learned, judged = trained({"relative_f": 1.0}), {"low": 0.1, "high": 0.3, "relative": 1.0}
    assert "set trust.relative too" in said(spec(training=learned), imported())
    assert "loss.relative_f too" in said(spec(trust=judged), imported())
    assert said(spec(training=learned, trust=judged), imported()) == ""


# ------------------------------------------------------------------------------ repulsion


def test_the_universal_potential() -> None:
    """Coulomb's law at contact; at 0.5 Å the value of the 1985 formula worked out by hand; twice
    the distance, less than half."""
    assert zbl(np.array([1e-6]), "C", "H")[0] * 1e-6 == pytest.approx(14.399645 * 6, rel=1e-4)
    length = 0.46850 / (14**0.23 + 14**0.23)
    x = 0.5 / length
    screening = (
        0.18175 * np.exp(-3.19980 * x)
        + 0.50986 * np.exp(-0.94229 * x)
        + 0.28022 * np.exp(-0.40290 * x)
        + 0.02817 * np.exp(-0.20162 * x)
    )
    assert zbl(np.array([0.5]), "Si", "Si")[0] == pytest.approx(14.399645 * 196 / 0.5 * screening)


def test_the_table_has_all_pairs_in_the_order_of_types_and_ends_at_zero() -> None:
    text = zbl_table(["H", "C"], 0.8)
    check_table(text, ["H", "C"])
    rows = np.loadtxt(text.splitlines())
    inside = rows[:, 0] < 0.8
    for column, pair in enumerate((("H", "H"), ("H", "C"), ("C", "C")), start=1):
        assert rows[inside, column] == pytest.approx(zbl(rows[inside, 0], *pair), rel=1e-8)
        assert (np.diff(rows[:, column]) <= 0).all()
    assert rows[-1].tolist() == pytest.approx([1.605, 0, 0, 0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 rows"),
        ("0.1 1 2 3\n0.2 1 1 1\n", "2 rows of 4 numbers"),
        ("0.1 1\n0.2 1\n0.3 0\n", "energies of 3 pairs of C, H"),
        ("0.1 1 1 1\n0.2 1 1 1\n0.4 0 0 0\n", "evenly spaced"),
        ("0.0 1 1 1\n0.1 1 1 1\n0.2 0 0 0\n", "above 0"),
        ("0.5 1 1 1\n0.6 1 1 1\n0.7 0 0 0\n", "first row is at 0.5"),
        ("0.1 1 1 1\n0.2 1 nan 1\n0.3 0 0 0\n", "not finite"),
        ("0.1 1 1 1\n0.2 1 1 1\n0.3 0 0 1\n", "last row"),
        ("a b c d\n", "could not convert"),
    ],
)
def test_what_is_no_table_is_said_before_the_start(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "my.table").write_text(text)
    wanted = spec(training={"repulsion": {"table": "my.table", "inner": 0.3, "outer": 0.6}})
    with pytest.raises(SpecError, match=r"training\.repulsion\.table: .*my\.table") as caught:
        given_files(wanted, tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_reaches_beyond_the_model() -> None:
    with pytest.raises(SpecError, match=r"repulsion\.outer: 3\.5 Å exceeds half .*\(6 Å\)"):
        check_training(spec(training={"repulsion": {"inner": 0.5, "outer": 3.5}}))


# ------------------------------------------------------------------------------ dimers


def dimers(pairs: list[str] | None = None, **changes: Any) -> Spec:
    section = {"pairs": pairs or [], "distances": [0.2, 0.4], **changes}
    return spec(initial={"data": ["set"], "dimers": section})


def test_dimers_are_labelled_closer_than_anything_else_may_be() -> None:
    wanted = dimers(["H-H"])
    frames, warned = gather_dimers(wanted)
    distances = [float(np.linalg.norm(f.positions[1] - f.positions[0])) for f in frames]
    assert distances == pytest.approx([0.2, 0.4])
    assert warned == []
    assert {frame_key(f) for f in frames} == dimer_keys(wanted)
    assert dimer_keys(spec()) == frozenset()


def test_pairs_that_cannot_be_computed_are_left_out_aloud_or_refused() -> None:
    """C-H has seven electrons: no singlet."""
    frames, warned = gather_dimers(dimers())
    assert {f.species for f in frames} == {("C", "C"), ("H", "H")}
    assert [text.split(":")[1].split("(")[0].strip() for text in warned] == [
        "C-H cannot be labelled"
    ]
    with pytest.raises(SpecError, match=r"initial\.dimers\.pairs: C-H .*electron-parity"):
        gather_dimers(dimers(["C-H"]))


def test_dimers_keep_caps_of_their_own() -> None:
    wanted = dimers(["H-H"], max_force=900.0)
    assert wanted.initial.dimers is not None
    limits = AcceptanceLimits.of_dimers(wanted.initial.dimers, wanted.labels)
    assert (limits.min_distance, limits.max_force) == (0.0, 900.0)


@pytest.mark.parametrize(
    ("section", "match"),
    [
        (
            {"pairs": ["H-X"]},
            r"initial.dimers.pairs: 'H-X' is not a pair of elements in type_map \(C, H\)",
        ),
        ({"distances": []}, "at least 1"),
        ({"distances": [0.01]}, "greater than or equal to 0.1"),
        ({"distances": [5.0], "box": 8.0}, "exceed half the box"),
    ],
)
def test_dimers_that_cannot_be(section: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dimers(**section)


# ------------------------------------------------------------------------------ given models


def test_given_models_are_one_or_one_each() -> None:
    init = {"model": ["a.pb", "b.pb"], "how": "finetune"}
    with pytest.raises(ValueError, match="give one file, or one per member"):
        spec(training={"init": init})
    assert spec(training={"init": {"model": "a.pb", "how": "finetune"}}).training.init is not None
    both = {"init": {"model": "a.pb", "how": "finetune"}, "repulsion": {"inner": 0.3, "outer": 1}}
    with pytest.raises(ValueError, match=r"training\.repulsion: not allowed with training\.init"):
        spec(training=both)


def test_given_models_travel_by_content(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"m{number}.pb").write_bytes(b"model %d" % number)
    init = {"model": [f"m{number}.pb" for number in range(4)], "how": "init-frz-model"}
    files = given_files(spec(training={"init": init}), tmp_path)
    assert [files[f"given-model-{n}"].data for n in range(4)] == [b"model %d" % n for n in range(4)]
    assert files["given-model-0"].suffix == "pb"


@pytest.mark.parametrize(
    ("how", "model", "said"),
    [
        ("init-frz-model", "m.pth", "requires a .pb file"),
        ("finetune", "m.pth", "requires a .pb file"),
        ("finetune", "no.pb", "no file matches 'no.pb'"),
        ("init-model", "model.ckpt", "no checkpoint has this name"),
        ("init-model", "no.zip", "no file matches 'no.zip'"),
    ],
)
def test_what_is_no_given_model(how: str, model: str, said: str, tmp_path: Path) -> None:
    wanted = spec(training={"init": {"model": model, "how": how}})
    with pytest.raises(SpecError, match=r"training\.init\.model: ") as caught:
        given_files(wanted, tmp_path)
    assert said in str(caught.value)


def test_a_pattern_that_names_one_model_or_several(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "final.pb").write_bytes(b"model")
    init = {"model": "old/*.pb", "how": "finetune"}
    assert given_files(spec(training={"init": init}), tmp_path)["given-model-0"].data == b"model"
    (tmp_path / "old" / "other.pb").write_bytes(b"model")
    with pytest.raises(SpecError, match=r"2 files match 'old/\*\.pb'; name one of them"):
        given_files(spec(training={"init": init}), tmp_path)


def test_only_pytorch_finetunes_a_branch() -> None:
    init = {"model": "m.pt", "how": "finetune", "branch": "Metals"}
    fits = spec(training={"init": init, "backend": "pytorch"}).training.init
    assert fits is not None
    assert fits.branch == "Metals"
    for changes, named in (
        ({"backend": "tensorflow", "init": init}, "finetune and tensorflow"),
        ({"backend": "pytorch", "init": {**init, "how": "init-model"}}, "init-model and pytorch"),
    ):
        with pytest.raises(ValueError, match=rf"init\.branch: only with .* not {named}"):
            spec(training=changes)


def test_jax_begins_in_no_given_frozen_model(tmp_path: Path) -> None:
    init = {"model": "m.pb", "how": "init-frz-model"}
    with pytest.raises(
        SpecError, match="init-frz-model: not supported with jax; allowed: init-model"
    ):
        given_files(spec(training={"init": init, "backend": "jax"}), tmp_path)


def test_jax_models_are_compressed() -> None:
    with pytest.raises(
        SpecError, match=r"training\.compress: false: not supported with .*; set true"
    ):
        check_training(spec(training={"backend": "jax", "compress": False}))


# ------------------------------------------------------------------------------ backends


def with_descriptor(backend: str, **descriptor: Any) -> Spec:
    section = {"rcut": 4.0, "rcut_smth": 0.5, "sel": 8, **descriptor}
    training = {"backend": backend, "input": {"model": {"descriptor": section}}}
    return spec(training=training)


@pytest.mark.parametrize(
    ("backend", "descriptor", "said"),
    [
        (
            "tensorflow",
            {"type": "se_atten", "tebd_dim": 8},
            "descriptor.tebd_dim: not supported by",
        ),
        (
            "pytorch",
            {"type": "se_a_tpe", "sel": [8]},
            "not supported by training.backend: pytorch; DeePMD-kit supports it with TensorFlow",
        ),
        (
            "jax",
            {"type": "se_e3", "sel": [8, 8]},
            "LAMMPS cannot run JAX models of this type; allowed",
        ),
        (
            "jax",
            {"type_one_side": False, "sel": [8, 8]},
            "type_one_side: false: not supported with",
        ),
    ],
)
def test_what_a_backend_does_not_have(backend: str, descriptor: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=r"training\.input\.model\.descriptor\.") as caught:
        check_training(with_descriptor(backend, **descriptor))
    assert said in str(caught.value)


@pytest.mark.parametrize("backend", ["tensorflow", "pytorch", "jax"])
def test_every_backend_has_the_defaults(backend: str) -> None:
    check_training(spec(training={"backend": backend}))
    repulsion = {"inner": 0.3, "outer": 1.0}
    loss = {"relative_f": 1.0, "start_pref_v": 1.0, "limit_pref_v": 1.0}
    training = {"backend": backend, "repulsion": repulsion, "input": {"loss": loss}}
    check_training(spec(training=training))
