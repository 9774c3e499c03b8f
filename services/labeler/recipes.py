"""Builds the recipe, which identifies labels in the store, from a spec's `labels` section.

The recipe is built when a campaign is submitted and again by every labeler: a labeler computes only
if its own recipe has the campaign's digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from dpstream.services.labeler.attachments import ReadFiles
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import (
    Brought,
    Code,
    StatesVersion,
    Stressless,
    Thermal,
    WithFiles,
)
from dpstream.services.labeler.codes.user_program import is_stated
from dpstream.shared.atoms.electron_temperature import electron_temperature
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings
from dpstream.shared.spec.errors import did_you_mean, validated
from dpstream.shared.values import Recipe

ROOM = 300.0
"""K; electron temperature with which settings are tested."""


def code_of(labels: LabelSettings) -> Code:
    """The labeling code that `labels` names. Raises SpecError for an unknown one."""
    code = CODES.get(labels.code)
    if code is None:
        hint = did_you_mean(labels.code, CODES) or f"; known: {', '.join(sorted(CODES))}"
        raise SpecError(f"labels.code: no labeling code {labels.code!r}{hint}")
    return code


def read_files(labels: LabelSettings, folder: Path) -> tuple[LabelSettings, Mapping[str, bytes]]:
    """`labels` with digests in place of the names of files that are stored with the campaign, and
    the contents of these files by digest. Names are relative to `folder`.

    Raises SpecError for a wrong setting or a file that cannot be read.
    """
    code, reading = code_of(labels), ReadFiles(folder)
    complete = _validated(code, labels.settings, reading)
    if not reading.files:
        return labels, {}
    settings = {key: complete[key] for key in labels.settings}
    return labels.model_copy(update={"settings": settings}), reading.files


def make_recipe(labels: LabelSettings, version_needed: bool = True) -> Recipe:
    """The recipe of `labels`: settings complete and normalised; the version that `labels.version`
    states (6.3 also allows 6.3.2) or, if it states none, the one installed here.

    `version_needed`: whether it is an error if the code is neither installed nor has a stated
    version; otherwise the recipe has none. Raises SpecError for this, for an unknown code or
    setting, a wrong value, and an installed version that the stated one does not allow.
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
        version=_version(code, settings, labels.version, version_needed),
        settings=settings,
        charge=labels.charge,
        multiplicity=labels.multiplicity,
        compositions=labels.compositions,
        electron_temperature=labels.electron_temperature,
    )


def unlabelable(labels: LabelSettings) -> str | None:
    """The setting with which every frame would be rejected or get a wrong label, with the remedy;
    None if there is none. Raises SpecError as `make_recipe` does."""
    code = code_of(labels)
    try:
        code.check_labelable(_validated(code, labels.settings))
    except ValueError as error:
        return f"labels.settings.{error}"
    return None


def virial_less(code: Code, settings: dict[str, Any]) -> str | None:
    """The setting because of which labels of periodic frames have no virial; None if they have one,
    or if that is not known before the first label."""
    return code.no_virial(settings) if isinstance(code, Stressless) else None


def supports(code: str, label_input: str) -> bool:
    """Whether a code of this name has the label input, such as `multiplicity`."""
    return code in CODES and label_input in CODES[code].inputs


def check_inputs(code: Code, given: Iterable[str], where: str) -> None:
    """Raises SpecError for label inputs that `code` does not support."""
    for name in given:
        if name not in code.inputs:
            supported = ", ".join(sorted(code.inputs)) or "none; see labels.settings"
            raise SpecError(
                f"{where}.{name}: {code.name} does not support it; supported: {supported}"
            )


def recipe_for(recipe: Recipe, frame: Frame) -> Recipe:
    """The recipe by which `frame` is computed and its label stored. Raises ValueError if the recipe
    needs an electron temperature and the frame has none."""
    own = recipe.of(frame.formula, electrons(frame.species))
    if own.electron_temperature is None:
        return own
    code, kelvin = CODES[own.code], electron_temperature(frame, own.electron_temperature)
    assert isinstance(code, Thermal)
    settings = code.at_electron_temperature(own.settings, kelvin)
    return own.model_copy(update={"settings": settings, "electron_temperature": None})


def _check_thermal(code: Code, settings: dict[str, Any]) -> None:
    """Raises SpecError if `code` with these settings does not support an electron temperature."""
    key = "labels.electron_temperature"
    if not isinstance(code, Thermal):
        able = ", ".join(sorted(n for n, each in CODES.items() if isinstance(each, Thermal)))
        raise SpecError(
            f"{key}: {code.name} does not support an electron temperature; supported by: {able}"
        )
    try:
        code.at_electron_temperature(settings, ROOM)
    except ValueError as error:
        raise SpecError(f"{key}: labels.settings.{error}") from error


def electrons(species: Iterable[str]) -> int:
    """Number of electrons of neutral atoms."""
    return sum(atomic_numbers.get(symbol, 0) for symbol in species)


def _version(code: Code, settings: dict[str, Any], stated: str | None, needed: bool) -> str | None:
    if isinstance(code, StatesVersion):
        return code.stated_version(settings, stated)
    try:
        installed = code.version(settings)
    except SpecError:
        if stated is None and needed:
            raise
        files = code.files(settings) if isinstance(code, WithFiles) else ""
        return f"{stated}; {files}" if stated and files else stated
    if stated in (None, installed):
        return installed
    number, separator, files = installed.partition("; ")
    if not is_stated(stated, number.removeprefix(f"{code.name} ")):
        raise SpecError(
            f"labels.version: {stated!r}, but {code.name} {installed} is installed here"
        )
    return f"{stated}{separator}{files}"


def unknown_here(labels: LabelSettings) -> str | None:
    """Why this machine does not know the version of the code, unless `labels` states one."""
    code = code_of(labels)
    if labels.version is not None or isinstance(code, StatesVersion):
        return None
    try:
        code.version(_validated(code, labels.settings))
    except SpecError as error:
        return str(error)
    return None


def program_of(recipe: Recipe) -> str:
    """Name under which workers state the version that is in the recipe."""
    return str(recipe.settings["calculator"]) if recipe.code == "ase" else recipe.code


def installed_versions(names: Iterable[str], calculators: Iterable[str]) -> dict[str, str]:
    """Versions, as in recipes, of codes and of ASE calculators on this machine; without those that
    depend on settings or that a campaign states."""
    found = {name: _plain_version(CODES[name], {}) for name in names}
    found |= {each: _plain_version(CODES["ase"], {"calculator": each}) for each in calculators}
    return {name: version for name, version in found.items() if version}


def _plain_version(code: Code, settings: dict[str, Any]) -> str:
    if isinstance(code, StatesVersion):
        return ""
    try:
        return code.version(settings)
    except (SpecError, KeyError):  # not installed, or not without settings
        return ""


def installed_codes() -> tuple[str, ...]:
    """Names of the labeling codes that this machine can run."""
    return tuple(filter(is_installed, CODES))


def is_installed(name: str) -> bool:
    """Whether this machine can run a code; also True if only a campaign's settings can decide."""
    code = CODES[name]
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
    complete = validated(code.settings, settings, "labels.settings.", reading)
    return complete.model_dump(mode="json")
