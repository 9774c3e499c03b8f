"""Checks the training input with DeePMD-kit's own checker before anything starts, and builds its
models with DeePMD-kit's NumPy implementation, which needs neither TensorFlow nor PyTorch."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from dpstream.inputs.check_backend import check_backend, check_compressed
from dpstream.services.trainer.input_words import check_words
from dpstream.services.trainer.training_input import ALIASES, TrainingRun, build_input
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.spec.errors import did_you_mean

BY_TYPE = frozenset({"se_e2_a", "se_e2_r", "se_e3"})
"""Descriptors with a number of neighbours for each element; they cut off those beyond it."""
LAYERED = {"dpa2": "repformer", "dpa3": "repflow"}
"""Descriptors made of equal layers, and the section with their number."""
BUILT = frozenset({*BY_TYPE, "dpa1", "se_atten", *LAYERED})
"""Descriptors that are built."""
SHALLOW = 2
"""Most layers that are built: sixteen take many seconds, and fit together as two do."""
PROBE = 8
"""Neighbours per element of the model that is built where DeePMD-kit counts them."""


def deepmd_is_here() -> bool:
    """Whether this machine can check training inputs; otherwise the trainers do."""
    return find_spec("deepmd") is not None


def unbuilt(spec: Spec) -> list[str]:
    """The descriptors of the spec that are not built here: the trainers build them."""
    kinds = {_kind(each) for _, each in _all_descriptors(spec, _members(spec))}
    return sorted(kinds - BUILT)


def check_training(spec: Spec) -> None:
    """Complete the input of every member that has overrides, and check it with DeePMD-kit.

    Raises `SpecError` naming section and key. If DeePMD-kit is not installed here, only the texts
    and the lengths of `sel` are checked; the trainer will check the rest.
    """
    check_compressed(spec.training)
    members = _members(spec)
    for key, descriptor in _all_descriptors(spec, members):
        _check_sel(key, descriptor, spec.type_map)
    _check_with_deepmd(spec, members)
    for member in members:
        _check_words(spec, member)


def _members(spec: Spec) -> list[int]:
    """The first member and those with overrides."""
    return [0, *sorted(set(spec.training.member_input) - {0})]


def _check_with_deepmd(spec: Spec, members: Sequence[int]) -> None:
    try:
        from deepmd.utils.argcheck import normalize  # deferred: not needed to submit
    except ImportError:
        return
    for member in members:
        document = build_input(spec.training, _run(spec, member))
        _check_reach(spec, document["model"])
        try:
            complete = normalize(document)
        except SpecError:
            raise
        except Exception as error:  # its checker raises several kinds, all with one-line messages
            raise SpecError(f"{_key(spec, member)}: {_plain(str(error))}") from error
        check_backend(spec.training.backend, document)
        _check_model(complete["model"], f"{_key(spec, member)}.model")


def _check_words(spec: Spec, member: int) -> None:
    for warm in (False, True):
        run, key = _run(spec, member, warm), "training.warm_input" if warm else _key(spec, member)
        try:
            check_words(build_input(spec.training, run), run.systems)
        except ValueError as error:
            raise SpecError(f"{key}: {error}") from error


def _run(spec: Spec, member: int, warm: bool = False) -> TrainingRun:
    return TrainingRun(spec.type_map, ("data",), steps=1, seed=1, member=member, warm=warm)


def _key(spec: Spec, member: int) -> str:
    own = member in spec.training.member_input
    return f"training.member_input.{member} or training.input" if own else "training.input"


def _check_reach(spec: Spec, model: dict[str, Any]) -> None:
    """The repulsion table must end within the model's cutoff."""
    repulsion, descriptor = spec.training.repulsion, model.get("descriptor")
    cutoff = descriptor.get("rcut") if isinstance(descriptor, dict) else None
    if repulsion is None or not isinstance(cutoff, (int, float)):
        return
    if 2 * repulsion.outer > cutoff:
        raise SpecError(
            f"training.repulsion.outer: {repulsion.outer:g} Å exceeds half the model's cutoff "
            f"({cutoff:g} Å); the table extends to twice this distance"
        )


def _plain(message: str) -> str:
    """`[at location `a/b`] text` as `a.b: text`."""
    text = " ".join(message.split())
    match = re.match(r"\[at (?:location `(?P<where>[^`]*)`|root location)\] (?P<what>.*)", text)
    if match is None:
        return text
    where = (match["where"] or "").replace("/", ".")
    what = match["what"].replace(" in strict mode", "")
    return f"{where}: {what}" if where else what


# ------------------------------------------------------------------------------ models


def _check_model(model: dict[str, Any], key: str) -> None:
    """Raises `SpecError` for a wrong name or number in a model that DeePMD-kit's checker accepts,
    and for one that DeePMD-kit cannot build."""
    from deepmd.common import VALID_ACTIVATION, VALID_PRECISION

    known = {"activation_function": {*VALID_ACTIVATION, "custom_silu"}}
    known["precision"] = set(VALID_PRECISION)
    for where, name, value in _named(model, key):
        if name in known and isinstance(value, str):
            _check_name(f"{where}.{name}", value, known[name])
    if all(_kind(each) in BUILT for _, each in _descriptors(model, key)) and "fitting_net" in model:
        fault = _fault(json.dumps(_probe(model), sort_keys=True))
        if fault:
            raise SpecError(f"{key}: DeePMD-kit cannot build it: {fault}")


def _named(section: Any, key: str) -> Iterator[tuple[str, str, Any]]:
    """All keys of a section and of those in it, with where they stand."""
    if isinstance(section, dict):
        for name, value in section.items():
            yield key, name, value
            yield from _named(value, f"{key}.{name}")
    elif isinstance(section, list):
        for number, value in enumerate(section):
            yield from _named(value, f"{key}.{number}")


def _check_name(key: str, value: str, known: set[str]) -> None:
    if value.lower().partition(":")[0] not in known:
        hint = did_you_mean(value, known) or f"; known: {', '.join(sorted(known))}"
        raise SpecError(f"{key}: {value!r} is not known to DeePMD-kit{hint}")


def _descriptors(model: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The descriptors of a model, those in a hybrid one by one, with where they stand."""
    descriptor = model.get("descriptor")
    if not isinstance(descriptor, dict):
        return
    if descriptor.get("type") != "hybrid":
        yield f"{key}.descriptor", descriptor
        return
    for number, each in enumerate(descriptor.get("list", [])):
        if isinstance(each, dict):
            yield f"{key}.descriptor.list.{number}", each


def _all_descriptors(spec: Spec, members: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The descriptors of these members, as given: DeePMD-kit has not checked them."""
    for member in members:
        model = build_input(spec.training, _run(spec, member))["model"]
        yield from _descriptors(model, f"{_key(spec, member)}.model")


def _kind(descriptor: dict[str, Any]) -> str:
    kind = str(descriptor.get("type"))
    return ALIASES.get(kind, kind)


def _check_sel(key: str, descriptor: dict[str, Any], elements: Sequence[str]) -> None:
    sel = descriptor.get("sel")
    if _kind(descriptor) in BY_TYPE and isinstance(sel, list) and len(sel) != len(elements):
        raise SpecError(
            f"{key}.sel: {len(sel)} numbers {sel} for the {len(elements)} elements of type_map "
            f"({', '.join(elements)}); give one for each, or auto"
        )


def counted_by_type(spec: Spec) -> Iterator[tuple[str, float, list[int]]]:
    """Where a descriptor of the spec states how many neighbours of each element it takes, its
    cutoff in Å, and these numbers."""
    for where, descriptor in _all_descriptors(spec, _members(spec)):
        sel = descriptor.get("sel")
        if _kind(descriptor) in BY_TYPE and isinstance(sel, list):
            yield f"{where}.sel", float(descriptor.get("rcut", 6.0)), sel


def _probe(model: dict[str, Any]) -> dict[str, Any]:
    """The model with few neighbours where they are counted from the data, with few layers, and
    without files."""
    probe = json.loads(json.dumps(model))
    probe.pop("use_srtab", None)
    for _, descriptor in _descriptors(probe, ""):
        kind = _kind(descriptor)
        if kind in LAYERED:
            layers = descriptor[LAYERED[kind]]
            layers["nlayers"] = min(layers["nlayers"], SHALLOW)
        elif isinstance(descriptor.get("sel", "auto"), str):
            descriptor["sel"] = [PROBE] * len(model["type_map"]) if kind in BY_TYPE else PROBE
    return dict(probe)


@lru_cache(maxsize=64)
def _fault(model: str) -> str:
    """Why DeePMD-kit cannot build a model, given as JSON, or not evaluate it; empty if it can."""
    from deepmd.dpmodel.model.model import get_model

    section = json.loads(model)
    kinds = np.arange(len(section["type_map"]))[None]
    apart = np.arange(kinds.size)[:, None] * np.array([1.1, 0.3, 0.2])
    parameters = {
        name: np.zeros((1, *shape, int(number)))
        for name, shape in (("fparam", ()), ("aparam", (kinds.size,)))
        if (number := section["fitting_net"].get(f"numb_{name}", 0))
    }
    try:
        get_model(section)(apart[None], kinds, box=None, **parameters)
    except (NotImplementedError, ImportError):
        return ""  # the backends support more than the NumPy implementation
    except Exception as error:  # of any kind, for any reason
        told = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
        return _plain(f"{type(error).__name__}: {told}")[:200]
    return ""
