"""Whatever lies in the store: a damaged object stops neither the coordinator nor another campaign,
and no reader of objects or of input languages raises anything but `ValueError`."""

from __future__ import annotations

import io
import random
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from structlog.testing import capture_logs

from dpstream.services.explorer.engines import template
from dpstream.services.explorer.engines.bias import checked
from dpstream.services.labeler import known_labels, restarts
from dpstream.services.labeler.codes.cp2k.input import check_template
from dpstream.services.labeler.codes.inside import check_inside
from dpstream.services.labeler.signatures import Signers, new_key, public_key, sign, writer
from dpstream.services.trainer import checkpoints
from dpstream.services.trainer.input_words import check_words
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import (
    FrameLabel,
    canonical,
    encode_labelled,
    frame_key,
    from_ase,
)
from dpstream.shared.atoms.tensorflow_graph import check_checkpoint, check_model
from dpstream.shared.codec import decode_or_none, encode
from dpstream.shared.spec import Spec
from dpstream.shared.spec.engines import Template
from dpstream.shared.spec.exploration import Md
from tests.support.adapters.recording_store import RecordingStore
from tests.support.campaigns.coordinator import CoordinatorHarness, small
from tests.support.campaigns.sample_messages import example
from tests.support.models.graphs import field, node
from tests.support.soak import SOAK

STORES = 3_000 if SOAK else 200
"""Damaged stores."""
INPUTS = 6_000 if SOAK else 700
"""For each reader."""
SICK, SOUND = "sick", "sound"
BOMBS = (b"", b"[" * 5_000, b"\xff\x00", b"null", b"{}")


def spoilt(chance: random.Random, data: bytes, others: Sequence[bytes] = BOMBS) -> bytes:
    """Bytes with a bit flipped, cut off, with bytes replaced, or those of another object."""
    kind = chance.choice(["flip", "cut", "splice", "splice", "other"])
    if kind == "other" or not data:
        return chance.choice(others)
    at = chance.randrange(len(data))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    inserted = chance.choice([chance.randbytes(4), b"-1", b"1e999", b"null", b"[", b'"', b"9" * 30])
    return data[:at] + inserted + data[at + chance.randrange(8) :]


# ------------------------------------------------------------------------------- the coordinator


@pytest.fixture(scope="module")
def objects() -> dict[str, bytes]:
    """A store with two campaigns under way; of one, a task was claimed and has ended."""
    store = RecordingStore()
    harness = CoordinatorHarness(store)
    harness.submit(small(SOUND))
    harness.submit(small(SICK))
    for _ in range(6):
        harness.step()
        harness.work()
    harness.step()
    return dict(store.objects)


def operator_words() -> list[m.Message]:
    words: list[m.Message] = [example(m.CampaignResumed), example(m.CampaignCancelled)]
    return [word.model_copy(update={"campaign": SICK}) for word in words]


@pytest.mark.parametrize("part", range(4))
def test_a_damaged_object_concerns_its_own_campaign(objects: dict[str, bytes], part: int) -> None:
    keys = sorted(key for key in objects if key.startswith(f"campaigns/{SICK}/"))
    for number in range(part, STORES, 4):
        chance = random.Random(number)
        store = RecordingStore()
        store.objects = dict(objects)
        for key in chance.sample(keys, chance.randint(1, 3)):
            if chance.random() < 0.1:
                del store.objects[key]
            else:
                others = (*BOMBS, *(objects[other] for other in chance.sample(keys, 3)))
                store.objects[key] = spoilt(chance, objects[key], others)
        _serve(store)


def _serve(store: RecordingStore) -> None:
    """A coordinator over a damaged store serves the other campaign."""
    with capture_logs():
        harness = CoordinatorHarness(store)
        harness.coordinator.open_all()
        harness.publish(*operator_words())
        for _ in range(3):
            harness.step()
    sound = harness.coordinator.open_campaigns[SOUND]
    assert SOUND not in harness.coordinator.broken
    assert sound.state.paused is None
    assert all(key.startswith(("campaigns/", "deadletters/")) for key in store.written)


# ------------------------------------------------------------------------------- the readers

FRAME = canonical(from_ase(molecule("CH4"))).frame
KEY, RECIPE = frame_key(FRAME), "r" * 64
SIGNING_KEY = new_key()
LABEL = sign(
    encode_labelled(
        FRAME, FrameLabel(-1.0, np.zeros((5, 3)), None), {"frame": KEY, "recipe": RECIPE}
    ),
    SIGNING_KEY,
)
SIGNERS = Signers(keys={public_key(SIGNING_KEY): "vasp"})
GRAPH = node("o_energy", "Const") + node("sum", "AddV2", "o_energy", "o_energy")
CHECKPOINT = field(2, GRAPH) + field(3, field(3, "save/restore_all"))


def _zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"x" * 50)
    return out.getvalue()


def _checkpoint(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.unpack(data, Path(folder))
        assert len(list(Path(folder).iterdir())) < 10


READERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "label": (LABEL, lambda data: known_labels.verified(data, RECIPE, KEY)),
    "signature": (LABEL, lambda data: writer(data, SIGNERS)),
    "signers": (SIGNERS.model_dump_json().encode(), Signers.model_validate_json),
    "spec": (small(SICK).model_dump_json().encode(), Spec.model_validate_json),
    "claim": (encode(example(m.TaskClaimed)), decode_or_none),
    "restart files": (
        restarts.pack(restarts.Restart(KEY, RECIPE, {"a.wfn": b"x" * 99})),
        restarts.unpack,
    ),
    "checkpoint": (
        _zipped("model.ckpt-100.index", "model.ckpt-100.meta"),
        _checkpoint,
    ),
    "graph": (GRAPH, check_model),
    "checkpoint's graph": (CHECKPOINT, check_checkpoint),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_objects_raises_nothing_but_value_errors(name: str) -> None:
    valid, read = READERS[name]
    read(valid)
    for number in range(INPUTS):
        chance = random.Random(number)
        body = valid
        for _ in range(chance.randint(1, 3)):
            body = spoilt(chance, body)
        with suppress(ValueError):
            read(body)


CP2K = "&FORCE_EVAL\n&SUBSYS\n&CELL\n&END\n&COORD\n&END\n&END\n&DFT\nCHARGE 0\n&END\n&END\n"
LAMMPS = "units metal\nvariable t equal 300\nfix 1 all nve\nvelocity all create ${t} 1\nrun 10\n"
LANGUAGES: dict[str, tuple[str, Callable[[str], object]]] = {
    "CP2K": (CP2K, check_template),
    "LAMMPS": (
        LAMMPS,
        lambda text: template.parse(
            Template(kind="template", lammps=text), {}, ({}, {}), Md(steps=10)
        ),
    ),
    "Colvars and PLUMED": (
        "colvar { name d\n distance { group1 { atomNumbers 1 } } }",
        lambda text: checked(text, False),
    ),
    "settings": ("wfcdir = './x'", lambda text: check_inside({"a": {"b": [text]}})),
    "DeePMD-kit": ("se_e2_a", lambda text: check_words({"model": {"type": [text]}, text: text})),
}
PATHS = ("../", "/tmp/x", "~", "${", "}", "$(", "`")
SYNTAX = ("\n", "\\\n", "&", "&END", "@INCLUDE", "include", '"', "'", "#", "!", "{", "1e400")
COMMANDS = ("shell rm", "variable", "fix", "print", "file", "\x00", "\x1b", "\ud800", "")
WORDS = (*PATHS, *SYNTAX, *COMMANDS)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_reader_of_an_input_language_raises_nothing_but_value_errors(name: str) -> None:
    valid, read = LANGUAGES[name]
    for number in range(INPUTS):
        chance = random.Random(number)
        text = valid
        for _ in range(chance.randint(0, 6)):
            at = chance.randint(0, len(text))
            inserted = chance.choice([*WORDS, chr(chance.randrange(0x3000))])
            text = text[:at] + inserted + text[at + chance.randint(0, 4) :]
        with suppress(ValueError):
            read(text)


def test_how_many() -> None:
    inputs = STORES + INPUTS * (len(READERS) + len(LANGUAGES))
    print(f"{inputs} inputs")
    assert inputs >= (80_000 if SOAK else 9_000)
