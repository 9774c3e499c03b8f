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
        again. Raises `SpecError` for what is absurd."""
        count = number_of_checks(gathered, spec) if self.cross_check else 0
        with errors_at(str(self.spec), SpecError):
            return replace(plausible(gathered, self.force), compared=count)
