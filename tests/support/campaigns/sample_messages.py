"""A simple message of every class."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel

from dpstream.shared import messages as m
from tests.support.campaigns import sample_ledger

B = TypeVar("B", bound=BaseModel)
VALUES: dict[str, Any] = {
    "campaign": sample_ledger.NAME,
    "generator": "ga",
    "capability": "tblite",
    "purpose": "test",
    "histogram": (0,) * 48,
    "key": "0" * 32,
    "sha256": "0" * 64,
    "uri": "a",
}
"""Values of fields whose type alone does not determine a valid one."""


def value_of(name: str, annotation: Any) -> Any:
    """A valid value of a required field."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return simplest(annotation)
    if annotation in (int, float):
        return 1
    if origin is Literal:
        return VALUES.get(name, arguments[0])
    if annotation is bool:
        return True
    if name in VALUES:
        return VALUES[name]
    return {tuple: (), dict: {}}.get(origin, "x")


def simplest(model: type[B]) -> B:
    """An instance with its required fields alone."""
    fields = model.model_fields.items()
    return model.model_validate(
        {name: value_of(name, field.annotation) for name, field in fields if field.is_required()}
    )


@cache
def example(kind: type[m.Message]) -> Any:
    """A simple message of a class."""
    return simplest(kind)
