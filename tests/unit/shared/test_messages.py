"""Every message crosses the bus unchanged, and nothing else does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dpstream.shared import messages as m
from dpstream.shared.bus.topology import declared
from dpstream.shared.codec import MAX_BODY, decode, encode, message_schema, topic_of
from dpstream.shared.values import (
    Key,
    Recipe,
    Ref,
    TaskId,
    Trust,
    label_uri,
    stable_id,
    stable_seed,
)
from tests.support.campaigns.random_messages import EVERY, instances
from tests.support.soak import examples

FORMER = {"candidates-found/1": m.ChunkExplored}
"""Type tags that are read and no longer written."""
SCHEMA = Path(__file__).parents[3] / "docs" / "messages.schema.json"


# -------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@examples(15, usual=5)
@given(data=st.data())
def test_every_message_survives(kind: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(instances(kind))
    body = encode(message)
    back = decode(body)
    assert type(back) is kind
    assert back == message
    assert encode(back) == body


def example() -> m.TaskFailed:
    return m.TaskFailed(
        id="1", campaign="methane", time=1.5, task="t", attempt=1, permanent=True, reason="x"
    )


def test_type_tags_are_unique_and_versioned() -> None:
    tags = [kind.model_fields["type"].default for kind in EVERY]
    assert len({*tags, *FORMER}) == len(EVERY) + len(FORMER)
    for kind in EVERY:
        former = tuple(tag for tag, of in FORMER.items() if of is kind)
        assert m.tags_of(kind) == (kind.model_fields["type"].default, *former)
        assert re.fullmatch(r"[a-z-]+/\d+", kind.model_fields["type"].default)


@pytest.mark.parametrize("tag", FORMER)
@examples(15, usual=5)
@given(data=st.data())
def test_a_former_tag_is_read_as_the_present_one(tag: str, data: st.DataObject) -> None:
    message = data.draw(instances(FORMER[tag]))
    document = json.loads(encode(message))
    assert document["type"] != tag
    assert decode(json.dumps(document | {"type": tag}).encode()) == message


def test_every_kind_of_message_can_be_decoded() -> None:
    concrete = {kind for kind in vars(m).values() if isinstance(kind, type)}
    concrete = {k for k in concrete if issubclass(k, m.Message) and "type" in k.model_fields}
    assert concrete == set(EVERY)


def test_every_command_has_a_queue_and_every_event_a_topic() -> None:
    for kind in m.COMMANDS:
        queue = kind.QUEUE.format("tblite")
        assert declared(queue) is not None, queue
    assert topic_of(example()) == "methane.task-failed"


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"type": "task-failed/2"},
        {"type": "nothing/1"},
        {"type": None},
        {"campaign": "Methane"},
        {"campaign": "a.b"},
        {"campaign": "../x"},
        {"campaign": ""},
        {"campaign": "x" * 64},
        {"campaign": "methane\n"},
        {"task": "../../x"},
        {"task": "a/b"},
        {"task": ""},
        {"task": "t\n"},
        {"task": "t" * 101},
        {"attempt": 1.5},
        {"attempt": "one"},
        {"permanent": None},
        {"time": "now"},
    ],
    ids=str,
)
def test_what_is_not_in_the_vocabulary_is_refused(change: dict[str, object]) -> None:
    document = json.loads(encode(example()))
    assert decode(json.dumps(document).encode()) == example()
    with pytest.raises(ValidationError):
        decode(json.dumps(document | change).encode())


@pytest.mark.parametrize("missing", ["id", "campaign", "time", "task", "attempt", "reason", "type"])
def test_nothing_required_may_be_missing(missing: str) -> None:
    document = json.loads(encode(example()))
    del document[missing]
    with pytest.raises(ValidationError):
        decode(json.dumps(document).encode())


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"\xff", b"{", b'"x"', b"[" * 10**5, b'{"type":"task-failed/1"}']
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValidationError):
        decode(body)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    with pytest.raises(ValidationError):
        decode(body)


def test_unknown_fields_are_refused_inside_values_too() -> None:
    with pytest.raises(ValidationError):
        Ref.model_validate({"uri": "a", "sha256": "0" * 64, "size": 1, "bucket": "b"})


def test_labelers_of_0_1_read_commands_that_continue_nothing() -> None:
    """They refuse fields that they do not know."""
    about = {"id": "1", "campaign": "c", "time": 0.0, "task": "t", "attempt": 1, "title": "label"}
    command = m.Label(
        **about,  # type: ignore[arg-type]
        max_seconds=1.0,
        spec=Ref.to("spec", b""),
        capability="tblite",
        recipe="r",
        frames=(),
    )
    assert "resume" not in json.loads(encode(command))
    continued = command.model_copy(update={"resume": Ref.to("restart", b"x")})
    assert decode(encode(continued)) == continued


def test_messages_are_frozen() -> None:
    with pytest.raises(ValidationError):
        example().reason = "another"  # type: ignore[misc]


def test_sizes_are_bounded() -> None:
    just = example().model_copy(update={"trace": "x" * (MAX_BODY - len(encode(example())))})
    assert len(encode(just)) == MAX_BODY
    with pytest.raises(ValueError, match="TaskFailed is 65537 bytes; at most 65536 allowed"):
        encode(just.model_copy(update={"trace": just.trace + "x"}))


def test_attempts_count_from_one() -> None:
    with pytest.raises(ValidationError, match="attempt"):
        m.Command.model_validate(
            {"id": "1", "campaign": "c", "time": 0, "task": "t", "title": "", "max_seconds": 1}
            | {"spec": Ref.to("s", b""), "attempt": 0}
        )


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -0.0, 5e-324, 1e308])
def test_floats_cross_to_the_bit(value: float) -> None:
    event = example().model_copy(update={"time": value})
    back = decode(encode(event)).time
    assert repr(back) == repr(value)


# ------------------------------------------------------------------------------------------- schema


def test_the_committed_schema_is_that_of_the_messages() -> None:
    assert SCHEMA.read_text() == message_schema(), (
        "docs/messages.schema.json has drifted: `make schema` writes it again"
    )


def test_the_schema_names_every_message() -> None:
    schema = json.loads(message_schema())
    assert schema["discriminator"]["mapping"].keys() == {
        tag for kind in EVERY for tag in m.tags_of(kind)
    }


# ----------------------------------------------------------------------------------- keys and ids


@pytest.mark.parametrize(
    "key", ["a", "a/b", "campaigns/methane/claims/t-1/1.stop", "A_-.z/0", "-", "x" * 512]
)
def test_keys(key: str) -> None:
    assert Ref(uri=key, sha256="0" * 64, size=0).uri == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/..",
        "../a",
        ".a",
        "a/.b",
        "a b",
        "ä",
        "a\n",
        "x" * 513,
        "a\\b",
    ],
)
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ValidationError):
        Ref(uri=key, sha256="0" * 64, size=0)


@pytest.mark.parametrize(
    ("sha256", "size"), [("0" * 63, 0), ("G" * 64, 0), ("A" * 64, 0), ("0" * 64, -1)]
)
def test_what_is_no_digest(sha256: str, size: int) -> None:
    with pytest.raises(ValidationError):
        Ref(uri="a", sha256=sha256, size=size)


def test_a_reference_is_made_from_bytes() -> None:
    ref = Ref.to("a", b"abc")
    assert ref.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert ref.size == 3


def test_ids_are_the_same_everywhere_and_for_ever() -> None:
    # Task ids and seeds of running campaigns depend on these.
    assert stable_id("methane", "train", 1, 0) == "49c6a18c-8366-523c-aa49-e6357ab6d99d"
    assert stable_seed("methane", "train", 1, 0) == 1126138366
    assert stable_id("a", "b") != stable_id("ab")
    assert stable_id("a", 1) == stable_id("a", "1")
    TypeAdapter(TaskId).validate_python(stable_id("x"))


@given(st.lists(st.text() | st.integers(), max_size=4))
def test_seeds_fit_every_engine(parts: list[object]) -> None:
    assert 1 <= stable_seed(*parts) <= 2**31 - 1


def test_a_recipe_is_identified_by_what_it_says_not_how() -> None:
    recipe = Recipe(
        code="tblite", version="0.4", settings={"a": 1, "b": 2}, charge=0, multiplicity=1
    )
    turned = recipe.model_copy(update={"settings": {"b": 2, "a": 1}})
    assert turned.digest == recipe.digest
    assert re.fullmatch(r"[0-9a-f]{16}", recipe.digest)
    changes: list[dict[str, Any]] = [{"version": "0.5"}, {"charge": 1}, {"multiplicity": 3}]
    for change in [*changes, {"settings": {}}]:
        assert recipe.model_copy(update=change).digest != recipe.digest
    TypeAdapter(Key).validate_python(label_uri(recipe.digest, "0" * 32))


def test_trust_levels_have_units_of_their_own() -> None:
    assert Trust(low=0.1, high=0.2).model_dump(exclude_none=True) == {"low": 0.1, "high": 0.2}
