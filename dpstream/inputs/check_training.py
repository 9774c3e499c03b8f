"""Checks the training input with DeePMD-kit's own checker before anything starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dpstream.inputs.check_backend import check_backend, check_compressed
from dpstream.services.trainer.input_words import check_words
from dpstream.services.trainer.training_input import TrainingRun, build_input
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec


def check_training(spec: Spec) -> None:
    """Complete the input of every member that has overrides, and check it with DeePMD-kit.

    Raises `SpecError` naming section and key. If DeePMD-kit is not installed here, only the texts
    are checked; the trainer will check the rest.
    """
    check_compressed(spec.training)
    members = [0, *sorted(set(spec.training.member_input) - {0})]
    _check_with_deepmd(spec, members)
    for member in members:
        _check_words(spec, member)


def _check_with_deepmd(spec: Spec, members: Sequence[int]) -> None:
    try:
        from deepmd.utils.argcheck import normalize  # deferred: not needed to submit
    except ImportError:
        return
    for member in members:
        document = build_input(spec.training, _run(spec, member))
        _check_reach(spec, document["model"])
        try:
            normalize(document)
        except SpecError:
            raise
        except Exception as error:  # its checker raises several kinds, all with one-line messages
            raise SpecError(f"{_key(spec, member)}: {_plain(str(error))}") from error
        check_backend(spec.training.backend, document)


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
