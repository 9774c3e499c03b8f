"""From a spec's `labels` section to the recipe that identifies its labels."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from services.labeler.codes import CODES
from services.labeler.codes.base import Code
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


def make_recipe(labels: Labels) -> Recipe:
    """The recipe of `labels`: settings complete and normalised, version as installed here.

    Raises SpecError for an unknown code or setting, a wrong value, or a code not installed.
    """
    code = code_of(labels)
    if not code.electronic and (labels.charge, labels.multiplicity) != (0, 1):
        raise SpecError(
            f"labels.charge, labels.multiplicity: {code.name} takes neither; give them to the "
            "calculator in labels.settings.arguments"
        )
    settings = _validated(code, labels.settings)
    return Recipe(
        code=code.name,
        version=code.version(settings),
        settings=settings,
        charge=labels.charge,
        multiplicity=labels.multiplicity,
    )


def installed_codes() -> tuple[str, ...]:
    """Names of the codes that this machine can run."""
    return tuple(name for name, code in CODES.items() if _is_installed(code))


def _is_installed(code: Code) -> bool:
    """One with a setting that only a campaign can give is asked when a campaign gives it."""
    try:
        settings = _validated(code, {})
    except SpecError:
        return True
    try:
        code.version(settings)
    except SpecError:
        return False
    return True


def _validated(code: Code, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        return code.settings.model_validate(settings).model_dump(mode="json")
    except ValidationError as error:
        raise SpecError(f"labels.settings.{explain(error, code.settings)}") from error
