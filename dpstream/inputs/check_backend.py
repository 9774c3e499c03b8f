"""Whether a backend of DeePMD-kit has what a training input asks for, by DeePMD-kit's own words."""

from __future__ import annotations

import re
from typing import Any

from dpstream.services.trainer.training_input import ALIASES, BACKENDS, CONVERTED
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Training

HAVE = re.compile(r"\(Supported Backend: (?P<titles>[^)]*)\)")
"""How the documentation of an argument begins that not every backend has."""


def check_backend(backend: str, document: dict[str, Any]) -> None:
    """Raises `SpecError` naming the key of a complete training input, which DeePMD-kit's checker
    has passed, that it has for other backends only."""
    from dargs import Argument  # deferred, as where this is called
    from deepmd.utils.argcheck import gen_args

    def key(argument: Any, value: Any, path: list[str]) -> None:
        _demand(backend, ".".join([*path, argument.name]), argument.doc)

    def choice(variant: Any, section: dict[str, Any], path: list[str]) -> None:
        chosen = variant.get_choice(section, path)
        _demand(backend, f"{'.'.join([*path, variant.flag_name])}: {chosen.name}", chosen.doc)

    base = Argument("base", dict, gen_args())
    base.traverse_value(document, value_hook=key, variant_hook=choice)
    if backend == "jax":
        _check_converted(document["model"])


def _demand(backend: str, key: str, doc: str) -> None:
    said = HAVE.match(doc)
    if said is None or BACKENDS[backend].title in said["titles"].split(", "):
        return
    raise SpecError(
        f"training.input.{key}: DeePMD-kit has it with {said['titles']}, not with "
        f"training.backend: {backend}"
    )


def _check_converted(model: dict[str, Any]) -> None:
    """LAMMPS runs a JAX model converted to TensorFlow, which keeps some models only."""
    descriptor = model.get("descriptor", {})
    kind = ALIASES.get(str(descriptor.get("type")), descriptor.get("type"))
    key = "training.input.model.descriptor"
    if kind != CONVERTED:
        raise SpecError(
            f"{key}.type: {kind}: LAMMPS runs no JAX model of this kind; allowed with "
            f"training.backend: jax: {CONVERTED}"
        )
    if not descriptor.get("type_one_side", True):
        raise SpecError(f"{key}.type_one_side: false: not with training.backend: jax")


def check_compressed(training: Training) -> None:
    """DeePMD-kit 3.2.0 converts a JAX model to one that says something else until it is compressed
    (methane: force errors of 1.6 instead of 0.4 eV/Å)."""
    if BACKENDS[training.backend].compressed_only and not training.compress:
        raise SpecError(
            f"training.compress: false: not with training.backend: {training.backend}, whose "
            "models are right for LAMMPS only when compressed; give true"
        )
