"""From a spec's `labels` section to the recipe that identifies its labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.labeler.attachments import Reading
from services.labeler.codes import CODES
from services.labeler.codes.base import Code, FileCode
from shared.errors import SpecError
from shared.spec import Labels
from shared.spec_errors import did_you_mean, explain
from shared.values import Recipe


def code_of(labels: Labels) -> Code:
    """The labeling code that `labels` names (SpecError when there is none)."""
    code = CODES.get(labels.code)
    if code is None:
        hint = did_you_mean(labels.code, CODES) or f"; known: {', '.join(sorted(CODES))}"
        raise SpecError(f"labels.code: no labeling code {labels.code!r}{hint}")
    return code


def read_files(labels: Labels, folder: Path) -> tuple[Labels, Mapping[str, bytes]]:
    """`labels` with digests in place of the names of the files that are to go with the campaign,
    and these files by digest. Names are relative to `folder`.

    Raises SpecError for a wrong setting, or a file that cannot be read.
    """
    code, reading = code_of(labels), Reading(folder)
    complete = _validated(code, labels.settings, reading)
    if not reading.files:
        return labels, {}
    settings = {key: complete[key] for key in labels.settings}
    return labels.model_copy(update={"settings": settings}), reading.files


def make_recipe(labels: Labels) -> Recipe:
    """The recipe of `labels`: settings complete and normalised, version as installed here, or as
    stated where it is not.

    Raises SpecError for an unknown code or setting, a wrong value, a code that is neither installed
    nor stated in its version, or another version than the one stated.
    """
    code = code_of(labels)
    if not code.electronic and (labels.charge, labels.multiplicity) != (0, 1):
        raise SpecError(
            f"labels.charge, labels.multiplicity: {code.name} takes neither; give them in "
            "labels.settings, as the code has them"
        )
    settings = _validated(code, labels.settings)
    return Recipe(
        code=code.name,
        version=_version(code, settings, labels.version),
        settings=settings,
        charge=labels.charge,
        multiplicity=labels.multiplicity,
    )


def _version(code: Code, settings: dict[str, Any], stated: str | None) -> str:
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
    if isinstance(code, FileCode):
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
    code: Code, settings: dict[str, Any], reading: Reading | None = None
) -> dict[str, Any]:
    try:
        return code.settings.model_validate(settings, context=reading).model_dump(mode="json")
    except ValidationError as error:
        raise SpecError(f"labels.settings.{explain(error, code.settings)}") from error
