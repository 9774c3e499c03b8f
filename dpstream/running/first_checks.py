"""What is checked when a campaign begins, besides its spec; one that goes on has passed it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dpstream.inputs.gather import Gathered, plausible
from dpstream.running.cross_check import number_of_checks
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.spec import Spec


@dataclass(frozen=True)
class FirstChecks:
    """`spec`: its file, for errors; `cross_check`: whether imported labels are compared with the
    recipe; `force`: whether absurd numbers are allowed."""

    spec: Path
    cross_check: bool
    force: bool

    def passed(self, spec: Spec, gathered: Gathered) -> Gathered:
        """What the campaign starts from, with the number of imported labels that it has computed
        again. Raises `SpecError` for what is absurd, or does not fit the budget."""
        count = number_of_checks(gathered, spec) if self.cross_check else 0
        with errors_at(str(self.spec), SpecError):
            found = replace(plausible(gathered, self.force), compared=count)
            _check_budget(spec, found)
        return found


def _check_budget(spec: Spec, found: Gathered) -> None:
    """Raises `SpecError` if the budget is smaller than all that is computed in any case."""
    points, least = spec.verification.reference_points, found.least(spec)
    if least > spec.budget.labels:
        raise SpecError(
            f"budget.labels: {spec.budget.labels} is less than the {least} that are computed in "
            f"any case ({found.first} initial frames to label + {points} single points of "
            "verification.reference_md); raise it, or reduce these"
        )
