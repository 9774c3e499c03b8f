"""Random messages of every class, and random JSON, for property tests."""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from hypothesis import strategies as st
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from dpstream.shared import messages as m

EVERY = (*m.COMMANDS, *m.EVENTS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8),
    int: st.integers(1, 2**53),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    Any: JSON,
    type(None): st.none(),
}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Valid values of a field of that type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in PLAIN:
        return PLAIN[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return instances(annotation)
    if origin is Annotated:
        return constrained(arguments[0], arguments[1:])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is tuple:
        size = len(arguments) if arguments[-1] is not Ellipsis else None
        if size is None:
            return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
        return st.tuples(*map(values_of, arguments))
    assert origin is dict, annotation
    return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=2)


def constrained(base: Any, constraints: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    patterns = [str(c.pattern) for c in constraints if isinstance(c, StringConstraints)]
    if not patterns:
        return values_of(base)
    digits = re.search(r"^\^\[0-9a-f\]\{(\d+)\}\$$", patterns[0])
    if digits:
        return st.text("0123456789abcdef", min_size=int(digits[1]), max_size=int(digits[1]))
    return st.text("abcxyz019_-", max_size=20).map(lambda text: "a" + text)


def field_values(field: FieldInfo) -> st.SearchStrategy[Any]:
    if any(isinstance(x, Gt) for x in field.metadata):
        return st.floats(0, exclude_min=True, allow_nan=False)
    for most in (x.le for x in field.metadata if isinstance(x, Le)):
        if field.annotation is int:
            return st.integers(1, most)  # type: ignore[arg-type]
        return st.floats(0, most)  # type: ignore[arg-type]
    if any(isinstance(x, Ge) for x in field.metadata) and float in get_args(field.annotation):
        return st.none() | st.floats(0, allow_nan=False, allow_infinity=False)
    strings = tuple(x for x in field.metadata if isinstance(x, StringConstraints))
    return constrained(field.annotation, strings) if strings else values_of(field.annotation)


def instances(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    fields = {name: field_values(field) for name, field in model.model_fields.items()}
    return st.fixed_dictionaries(fields).map(model.model_validate)
