"""Graphs of TensorFlow hold no operations but those of DeePMD-kit's models."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from dpstream.services.labeler.codes.deepmd import Deepmd
from dpstream.services.trainer.start_from import SCRIPT, check_script
from dpstream.shared.atoms.tensorflow_graph import check_checkpoint, check_model, graph_of, texts_of
from dpstream.shared.errors import Permanent
from dpstream.shared.values import Recipe
from tests.support.models.graphs import field, node, text, writing

COMMITTEES = Path(__file__).parents[3] / "data/committees/committees.tar.xz"
PLAIN = node("x", "Placeholder") + node("o_energy", "Identity", "x")
SAVER = field(1, "save/Const:0") + field(2, "save/control_dependency:0")
SAVE = node("save/SaveV2", "SaveV2", "save/Const") + node(
    "save/control_dependency", "Identity", "save/Const", "^save/SaveV2"
)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("committees")
    with tarfile.open(COMMITTEES) as archive:
        archive.extractall(folder, filter="data")
    return sorted(folder.rglob("*.pb"))


def test_models_of_deepmd_kit_are_allowed(frozen: list[Path]) -> None:
    assert len(frozen) > 5
    for model in frozen:
        check_model(model.read_bytes())


def test_a_model_that_writes_a_file_is_refused(frozen: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="node 'writes': operation 'WriteFile' is none of"):
        check_model(writing(frozen[0], tmp_path / "x", "text"))


@pytest.mark.parametrize(
    "graph",
    [
        node("x", "ReadFile"),
        node("x", "PyFunc"),
        node("x", "SaveV2"),
        PLAIN + node("x", "LoadLibrary"),
        field(1, field(1, "x") + field(2, "WriteFile") + field(2, "Add")),
        field(1, field(2, "Add") + field(2, "WriteFile")),
        PLAIN + field(2, field(1, field(3, field(1, "x") + field(2, "WriteFile")))),
        PLAIN + field(2, b"") + field(2, field(1, field(3, field(2, "PrintV2")))),
    ],
    ids=["read", "python", "save", "library", "first", "last", "function", "second library"],
)
def test_other_operations_are_refused_wherever_they_are(graph: bytes) -> None:
    with pytest.raises(ValueError, match="is none of DeePMD-kit's models"):
        check_model(graph)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        PLAIN[:-1],
        PLAIN + b"\x0b",
        PLAIN + b"\x8a\x80\x80\x80\x80\x01\x00",
        PLAIN + b"\x0a" + b"\xff" * 10,
    ],
    ids=["empty", "text", "cut off", "group", "number beyond protobuf's", "length"],
)
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    """Also what TensorFlow might read in another way."""
    with pytest.raises(ValueError, match="not a TensorFlow graph"):
        check_model(data)


def test_a_checkpoint_may_save_itself_and_nothing_else() -> None:
    whole = field(2, PLAIN + SAVE + node("lr", "PyFunc")) + field(
        3, SAVER + field(3, "save/restore_all")
    )
    check_checkpoint(whole)
    with pytest.raises(ValueError, match="operation 'WriteFile'"):
        check_checkpoint(whole + field(2, node("x", "WriteFile")))
    for name in ("save/SaveV2:0", "^save/SaveV2", "save/control_dependency"):
        with pytest.raises(ValueError, match="node 'model_type' writes a file"):
            check_checkpoint(whole + field(2, node("model_type", "Identity", name)))
    with pytest.raises(ValueError, match="is read by 'save/control_dependency'"):
        check_checkpoint(whole + field(3, field(3, "save/control_dependency")))


def test_a_labeler_loads_no_such_model(
    frozen: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.pb").write_bytes(frozen[0].read_bytes())
    (tmp_path / "bad.pb").write_bytes(writing(frozen[0], tmp_path / "x", "text"))
    monkeypatch.setenv("DPSTREAM_LABELER_POTENTIALS", f"deepmd={tmp_path}")
    recipe = Recipe(
        code="deepmd", version="1", settings={"model": "good.pb"}, charge=0, multiplicity=1
    )
    assert Deepmd().localized(recipe).settings["model"] == str(tmp_path / "good.pb")
    with pytest.raises(Permanent, match=r"bad\.pb: node 'writes': operation 'WriteFile'"):
        Deepmd().localized(recipe.model_copy(update={"settings": {"model": "bad.pb"}}))


def test_the_model_section_inside_a_given_model_is_checked(frozen: list[Path]) -> None:
    check_script(frozen[0].read_bytes())
    compressed = {"type": "standard", "compress": {"model_file": "/home/me/frozen.pb"}}
    check_script(text(SCRIPT, json.dumps({"model": compressed})))
    for section in ({"use_srtab": "/etc/passwd"}, {"type": "frozen", "model_file": "x.pb"}):
        with pytest.raises(ValueError, match=r"model\.\w+: '.*': (must be|text is not allowed)"):
            check_script(text(SCRIPT, json.dumps({"model": section})))
    for form in (node(SCRIPT, "Identity", "x"), text(SCRIPT, "no JSON"), text(SCRIPT, "[]")):
        with pytest.raises(ValueError, match=r"not a constant|Expecting value|no input"):
            check_script(form)
    assert list(texts_of(graph_of(field(2, text("a", "b"))), "a")) == ["b"]
