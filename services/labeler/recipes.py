"""From a spec's `labels` section to the recipe that identifies its labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers
from pydantic import ValidationError

from dpstream.services.labeler.attachments import ReadFiles
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import Brought, Code, Stated, Thermal
from dpstream.shared.atoms.electron_temperature import electron_temperature
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings
from dpstream.shared.spec.errors import did_you_mean, explain
from dpstream.shared.values import Recipe

ROOM = 300.0
"""K, to try settings by."""


def code_of(labels: LabelSettings) -> Code:
    """The labeling code that `labels` names (SpecError when there is none)."""
    code = CODES.get(labels.code)
    if code is None:
        hint = did_you_mean(labels.code, CODES) or f"; known: {', '.join(sorted(CODES))}"
        raise SpecError(f"labels.code: no labeling code {labels.code!r}{hint}")
    return code


def read_files(labels: LabelSettings, folder: Path) -> tuple[LabelSettings, Mapping[str, bytes]]:
    """`labels` with digests in place of the names of the files that are to go with the campaign,
    and these files by digest. Names are relative to `folder`.

    Raises SpecError for a wrong setting, or a file that cannot be read.
    """
    code, reading = code_of(labels), ReadFiles(folder)
    complete = _validated(code, labels.settings, reading)
    if not reading.files:
        return labels, {}
    settings = {key: complete[key] for key in labels.settings}
    return labels.model_copy(update={"settings": settings}), reading.files


def make_recipe(labels: LabelSettings) -> Recipe:
    """The recipe of `labels`: settings complete and normalised, version as installed here, or as
    stated where it is not.

    Raises SpecError for an unknown code or setting, a wrong value, a code that is neither installed
    nor stated in its version, or another version than the one stated.
    """
    code = code_of(labels)
    own = {"charge": labels.charge, "multiplicity": labels.multiplicity - 1}
    check_inputs(code, [name for name, value in own.items() if value], "labels")
    for formula, inputs in labels.compositions.items():
        check_inputs(code, inputs.given, f"labels.compositions.{formula}")
    settings = _validated(code, labels.settings)
    if labels.electron_temperature is not None:
        _check_thermal(code, settings)
    return Recipe(
        code=code.name,
        version=_version(code, settings, labels.version),
        settings=settings,
        charge=labels.charge,
        multiplicity=labels.multiplicity,
        compositions=labels.compositions,
        electron_temperature=labels.electron_temperature,
    )


def check_inputs(code: Code, given: Iterable[str], where: str) -> None:
    """Raises SpecError for label inputs that `code` would not heed."""
    for name in given:
        if name not in code.inputs:
            taken = ", ".join(sorted(code.inputs)) or "none; see labels.settings"
            raise SpecError(f"{where}.{name}: {code.name} does not take it; it takes {taken}")


def recipe_for(recipe: Recipe, frame: Frame) -> Recipe:
    """What `frame` is computed by, and where its label is kept. ValueError where the frame has not
    the electron temperature that it is to be computed at."""
    own = recipe.of(frame.formula, electrons(frame.species))
    if own.electron_temperature is None:
        return own
    code, kelvin = CODES[own.code], electron_temperature(frame, own.electron_temperature)
    assert isinstance(code, Thermal)
    settings = code.at_electron_temperature(own.settings, kelvin)
    return own.model_copy(update={"settings": settings, "electron_temperature": None})


def _check_thermal(code: Code, settings: dict[str, Any]) -> None:
    """Raises SpecError where `code` cannot compute by these settings at an electron temperature."""
    key = "labels.electron_temperature"
    if not isinstance(code, Thermal):
        able = ", ".join(sorted(n for n, each in CODES.items() if isinstance(each, Thermal)))
        raise SpecError(f"{key}: {code.name} cannot be told one; codes that can: {able}")
    try:
        code.at_electron_temperature(settings, ROOM)
    except ValueError as error:
        raise SpecError(f"{key}: labels.settings.{error}") from error


def electrons(species: Iterable[str]) -> int:
    """Of neutral atoms."""
    return sum(atomic_numbers.get(symbol, 0) for symbol in species)


def _version(code: Code, settings: dict[str, Any], stated: str | None) -> str:
    if isinstance(code, Stated):
        return code.stated_version(settings, stated)
    try:
        installed = code.version(settings)
    except SpecError:
        if stated is None:
            raise
        return stated
    if stated not in (None, installed):
        raise SpecError(
            f"labels.version: {stated!r}, but {code.name} {installed} is installed here"
        )
    return installed


def installed_codes() -> tuple[str, ...]:
    """Names of the codes that this machine can run."""
    return tuple(name for name, code in CODES.items() if _is_installed(code))


def _is_installed(code: Code) -> bool:
    """One with a setting that only a campaign can give is asked when a campaign gives it."""
    if isinstance(code, Brought):
        return code.is_here()
    try:
        settings = _validated(code, {})
    except SpecError:
        return True
    try:
        code.version(settings)
    except SpecError:
        return False
    return True


def _validated(
    code: Code, settings: dict[str, Any], reading: ReadFiles | None = None
) -> dict[str, Any]:
    try:
        return code.settings.model_validate(settings, context=reading).model_dump(mode="json")
    except ValidationError as error:
        raise SpecError(f"labels.settings.{explain(error, code.settings)}") from error
