"""Models that DeePMD-kit's argument checker accepts and no trainer could build are found before
anything starts, with DeePMD-kit's NumPy implementation."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from ase import Atoms
from ase.build import bulk, molecule

from dpstream.inputs.check_training import check_training, unbuilt
from dpstream.inputs.plausibility import findings
from dpstream.shared.atoms.frames import FrameLabel, canonical, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec

SMALL = {"rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 2}


def spec(
    descriptor: dict[str, Any] | None = None,
    elements: tuple[str, ...] = ("H", "C"),
    **sections: Any,
) -> Spec:
    usual = {"type": "se_e2_a", "sel": [20, 10], **SMALL}
    given = descriptor or {}
    model = {"descriptor": given if "list" in given else {**usual, **given}}
    document = {
        "name": "test",
        "type_map": elements,
        "systems": {"a": {"structures": ["a.xyz"]}},
        "initial": {"perturb": {"copies": 1}},
        "stages": [{"name": "one", "systems": ["a"], "temperatures": [300]}],
        "training": {"input": {"model": {**model, "fitting_net": {"neuron": [8, 8]}}}},
    }
    return Spec.model_validate({**document, **sections})


def complaint(wanted: Spec) -> str:
    with pytest.raises(SpecError) as raised:
        check_training(wanted)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("descriptor", "words"),
    [
        ({"sel": [20]}, "model.descriptor.sel: 1 numbers [20] for the 2 elements of type_map"),
        ({"sel": [20, 10, 3]}, "model.descriptor.sel: 3 numbers [20, 10, 3] for the 2 elements"),
        ({"type": "se_a", "sel": [20]}, "model.descriptor.sel: 1 numbers"),
        ({"activation_function": "foo"}, "model.descriptor.activation_function: 'foo'"),
        ({"activation_function": "tahn"}, "did you mean 'tanh'"),
        ({"precision": "float99"}, "model.descriptor.precision: 'float99' is not known"),
        ({"axis_neuron": 20}, "model: DeePMD-kit cannot build it: ValueError: cannot reshape"),
        (
            {"type": "hybrid", "list": [{"type": "se_e2_r", "sel": [9], "rcut": 4.0}]},
            "model.descriptor.list.0.sel: 1 numbers [9]",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_key(
    descriptor: dict[str, Any], words: str
) -> None:
    assert words in complaint(spec(descriptor))


DPA2 = {
    "type": "dpa2",
    "repinit": {"rcut": 6.0, "rcut_smth": 0.5, "nsel": 12},
    "repformer": {"rcut": 4.0, "rcut_smth": 0.5, "nsel": 8, "nlayers": 12},
}
DPA3 = {
    "type": "dpa3",
    "repflow": {
        **{"e_rcut": 6.0, "e_rcut_smth": 5.3, "e_sel": 12},
        **{"a_rcut": 4.0, "a_rcut_smth": 3.5, "a_sel": 8, "nlayers": 16},
    },
}


def with_layers(descriptor: dict[str, Any], **changes: Any) -> Spec:
    """`changes`: of the section of its layers."""
    name = "repformer" if "repformer" in descriptor else "repflow"
    given = {**descriptor, name: {**descriptor[name], **changes}}
    return spec(training={"backend": "pytorch", "input": {"model": {"descriptor": given}}})


@pytest.mark.parametrize("descriptor", [DPA2, DPA3], ids=["dpa2", "dpa3"])
def test_deep_models_are_built(descriptor: dict[str, Any]) -> None:
    check_training(with_layers(descriptor))
    hybrid = {"type": "hybrid", "list": [descriptor, {"type": "dpa1", "sel": 10}]}
    training = {"backend": "pytorch", "input": {"model": {"descriptor": hybrid}}}
    check_training(spec(training=training))


def test_descriptors_that_are_not_built_are_named() -> None:
    assert unbuilt(spec()) == []
    assert unbuilt(with_layers(DPA3)) == []
    hybrid = {"type": "hybrid", "list": [DPA2, {"type": "se_atten_v2"}, {"type": "se_a_ebd_v2"}]}
    wanted = spec(training={"input": {"model": {"descriptor": hybrid}}})
    assert unbuilt(wanted) == ["se_a_ebd_v2", "se_atten_v2"]


@pytest.mark.parametrize(
    ("descriptor", "changes", "words"),
    [
        (DPA2, {"nsel": 40}, "rcut and sel are not in the same order"),
        (DPA2, {"axis_neuron": 200}, "cannot reshape"),
        (DPA2, {"update_style": "foo"}, "unknown update style foo"),
        (DPA3, {"a_sel": 40}, "e_sel >= self.repflows.a_sel"),
        (DPA3, {"a_rcut": 8.0}, "e_rcut >= self.repflows.a_rcut"),
        (DPA3, {"a_compress_rate": 3}, "a_dim*a_compress_e_rate must be divisible by 6"),
        (DPA3, {"e_rcutt": 3}, "undefined key `e_rcutt`"),
    ],
)
def test_deep_models_that_cannot_be_built_are_refused(
    descriptor: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    assert words in complaint(with_layers(descriptor, **changes))


def test_the_length_of_sel_is_checked_without_deepmd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepmd.utils.argcheck", None)
    assert "sel: 1 numbers [20] for the 2 elements" in complaint(spec({"sel": [20]}))


def test_the_fitting_net_and_members_are_checked_too() -> None:
    input_ = {"model": {"fitting_net": {"activation_function": "foo"}}}
    wanted = spec(training={"members": 2, "member_input": {1: input_}})
    assert complaint(wanted).startswith(
        "training.member_input.1 or training.input.model.fitting_net.activation_function: 'foo'"
    )


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"input": {"model": {"descriptor": {**SMALL, "type": "se_e2_a", "sel": "auto"}}}},
        {"input": {"model": {"descriptor": {**SMALL, "type": "se_a", "type_one_side": False}}}},
        {"input": {"model": {"descriptor": {"type": "se_e2_r", "rcut": 4.0, "sel": [9, 9]}}}},
        {"input": {"model": {"descriptor": {"type": "se_e3", "rcut": 4.0, "sel": [9, 9]}}}},
        {"input": {"model": {"descriptor": {**SMALL, "activation_function": "Silut:10.0"}}}},
        {"input": {"model": {"fitting_net": {"precision": "float32"}}}},
        {"input": {"model": {"fitting_net": {"activation_function": "gelu"}}}},
        {"input": {"model": {"fitting_net": {"atom_ener": [-1.0, None]}}}},
        {"repulsion": {"inner": 0.3, "outer": 1.0}},
        {"backend": "pytorch", "input": {"model": {"descriptor": {"type": "dpa1", "sel": 40}}}},
        {"backend": "pytorch", "input": {"model": {"descriptor": {"type": "se_atten", "sel": 9}}}},
        {"backend": "pytorch", "input": {"model": {"pair_exclude_types": [[0, 1]]}}},
    ],
    ids=str,
)
def test_usual_models_are_built(training: dict[str, Any]) -> None:
    check_training(spec(training=training))


@pytest.mark.parametrize("name", ["fparam", "aparam"])
def test_models_with_parameters_are_built(name: str) -> None:
    input_ = {"model": {"fitting_net": {f"numb_{name}": 2}}}
    systems = {"a": {"structures": ["a.xyz"], name: [1.0, 2.0]}}
    initial = {"perturb": {"copies": 1}}
    check_training(spec(training={"input": input_}, systems=systems, initial=initial))


@pytest.mark.slow
def test_neither_tensorflow_nor_pytorch_is_started() -> None:
    program = (
        "import sys; from tests.unit.inputs.test_built_models import check_training, spec;"
        "check_training(spec()); import deepmd.dpmodel.model;"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'torch', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# ------------------------------------------------------------------------------ neighbours


def found(wanted: Spec, atoms: Atoms, labelled: Atoms | None = None) -> list[str]:
    frame = canonical(from_ase(atoms)).frame
    pairs = []
    if labelled is not None:
        given = canonical(from_ase(labelled)).frame
        pairs = [(given, FrameLabel(0.0, given.positions))]
    absurd = [each.text for each in findings(wanted, {"a": [frame]}, pairs) if each.absurd]
    return [text for text in absurd if ".sel:" in text]


@pytest.mark.parametrize(
    ("sel", "missing"),
    [
        ([4, 1], []),
        ([3, 1], ["H"]),
        ([3, 0], ["H", "C"]),
        ("auto", []),
    ],
)
def test_a_sel_smaller_than_the_neighbours_is_named(sel: Any, missing: list[str]) -> None:
    texts = found(spec({"sel": sel}), molecule("CH4"))
    assert [text.split(": ")[1].split()[1].rstrip(",") for text in texts] == missing
    if missing:
        key = "training.input.model.descriptor.sel: 3 H, but an atom of systems.a has 4 of them"
        assert texts[0].startswith(key)


def test_images_count_and_labelled_sets_too() -> None:
    copper = bulk("Cu", cubic=True)
    assert len(found(spec({"sel": [17]}, ("Cu",)), copper)) == 1
    assert found(spec({"sel": [18]}, ("Cu",)), copper) == []  # 12 and 6, at 2.55 and 3.61 Å
    dense = copper.copy()
    dense.set_cell(copper.cell * 0.9, scale_atoms=True)
    (text,) = found(spec({"sel": [18]}, ("Cu",)), copper, labelled=dense)
    assert "an atom of initial.data has 42 of them within 4 Å" in text


def test_descriptors_that_attend_to_all_neighbours_are_left_alone() -> None:
    assert found(spec({"type": "dpa1", "sel": 1}), molecule("CH4")) == []
