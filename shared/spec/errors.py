"""Reads a YAML or JSON file to a dict, and turns a validation error into one line.

The line names the key, the value and the allowed values, instead of pydantic's several lines per
problem.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dpstream.shared.errors import SpecError
from dpstream.shared.spec.engines import KINDS, VARIABLES
from dpstream.shared.spec.exploration import TRUST_TAGS
from dpstream.shared.spec.systems import SET_TAGS
from dpstream.shared.values import NAME

B = TypeVar("B", bound=BaseModel)
NAMES = "use at most 63 lower-case letters, digits, - and _, starting with a letter or digit"
"""The rule for names."""
FORMS = {"engine": KINDS, "variables": VARIABLES}
"""Keys whose value has one of several forms, selected by `kind`."""


def read_document(path: Path, template: str = "dpstream new") -> dict[Any, Any]:
    """Read the mapping in a YAML or JSON file. Raises `SpecError` naming file, line and remedy;
    `template`: the command that writes an example."""
    text = _read_text(path)
    try:
        data = _load_json(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, _Duplicate) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise SpecError(f"{path}: not valid {kind}: {_where(error)}") from error
    if data is None:
        raise SpecError(f"{path}: the file is empty; `{template}` writes a template")
    if not isinstance(data, dict):
        raise SpecError(
            f"{path}: must be a mapping of keys to values; `{template}` writes a template"
        )
    return data


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not a UTF-8 text file (byte {error.start})") from error


class _Duplicate(Exception):
    """A duplicate key in JSON."""


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys; plain loaders silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as a string; people mean the number, as YAML 1.2 does.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _load_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, _ in pairs:
            if sum(other == key for other, _ in pairs) > 1:
                raise _Duplicate(f"key {key!r} is given twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique) if text.strip() else None


def _where(error: Exception) -> str:
    """Line, column and problem of a syntax error, without the quoted source."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None) or "syntax error"
        if r"'\t'" in problem:
            problem = "a tab; indent with spaces"
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return " ".join(str(error).split())


def validated(kind: type[B], data: Any, prefix: str = "", context: Any = None) -> B:
    """`data` as a `kind`. Raises `SpecError`: `prefix`, and the first problem as one line."""
    try:
        return kind.model_validate(data, context=context)
    except ValidationError as error:
        raise SpecError(prefix + explain(error, kind)) from error


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem as one line: key, value, allowed values. Unknown keys come first, because
    a misspelt required key is both unknown and missing."""
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = _location(problem)
    key = ".".join(str(part) for part in location if part != "[key]")
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(location, root)}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = message_of(problem)
    if not location:
        return message
    if problem["type"].startswith("union_tag"):
        return f"{key}.{message}"
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        return f"{key}: {message}"
    return f"{key}: {shown(problem['input'])}: {message}"


def _location(problem: ErrorDetails) -> list[Any]:
    """The path of the key, without the names that pydantic inserts for union members."""
    keys = [part for part in problem["loc"] if part not in (*TRUST_TAGS, *SET_TAGS)]
    return [
        part for n, part in enumerate(keys) if not (n and part in FORMS.get(_last(keys[:n]), ()))
    ]


def _last(keys: Sequence[Any]) -> Any:
    return next((key for key in reversed(keys) if isinstance(key, str)), None)


def first_of(error: ValidationError) -> str:
    """The first problem of a document that dpstream wrote: key and pydantic's message."""
    problem = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key}: {problem['msg']}" if key else problem["msg"]


def _suggestion(location: Sequence[Any], root: type[BaseModel]) -> str:
    """The key that is probably meant, also one of a section below, or the allowed keys."""
    allowed = _keys_at(location[:-1], root)
    deeper = {
        key: f"{section}.{key}"
        for section in allowed
        for key in _keys_at([*location[:-1], section], root)
        if key not in allowed
    }
    for known, cutoff in ((allowed, 0.8), ([*allowed, *deeper], 0.6)):
        for close in difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=cutoff):
            return f"; did you mean {deeper.get(close, close)!r}?"
    return "; allowed: " + ", ".join(sorted(allowed))


def message_of(problem: ErrorDetails) -> str:
    """Pydantic's message in the terms of a spec."""
    if problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == NAME:
        return NAMES
    if problem["type"] == "string_type" and isinstance(problem["input"], int | float):
        return "must be a string; put it in quotes"
    if problem["type"] == "path_not_file":
        return "no such file"
    if problem["type"] == "too_short":
        return "must not be empty"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        kinds = context["expected_tags"].replace("'", "")
        hint = did_you_mean(context["tag"], kinds.split(", "))
        return f"kind: {context['tag']!r}{hint or '; allowed: ' + kinds}"
    if problem["type"] == "union_tag_not_found":
        return "kind: missing"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.replace("should ", "must ")
    message = re.sub(r" or instance of \w+|, unable to parse string as .*", "", message)
    return message.replace("valid tuple", "list").replace("valid dictionary", "mapping")


def shown(value: Any) -> str:
    """The repr of a value, shortened to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(location: Sequence[Any], root: type[BaseModel]) -> list[str]:
    """Keys allowed in the section at `location`."""
    models = [root]
    for part in location:
        inner: list[type[BaseModel]] = []
        for model in models:
            if isinstance(part, str) and part in model.model_fields:
                inner += _models_in(model.model_fields[part].annotation)
        models = inner or models
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (tuple, dict, Union, types.UnionType, Annotated):
        return [m for argument in get_args(annotation) for m in _models_in(argument)]
    return []


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """`; did you mean 'x'?` for the closest known word of at least a `likeness` (0 to 1), or an
    empty string. A word that differs in capitals alone is the closest."""
    words = list(known)
    close = [each for each in words if each.lower() == word.lower()]
    close = close or difflib.get_close_matches(word, words, n=1, cutoff=likeness)
    return f"; did you mean {close[0]!r}?" if close else ""
