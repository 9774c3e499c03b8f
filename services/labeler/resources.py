"""What a labeler keeps warm between tasks: its child process and its settings."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.ase import SHIPPED
from dpstream.shared.atoms.frames import FrameLabel as FrameLabel
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.spec import LabelSettings
from dpstream.shared.values import Recipe

PROGRAMS = frozenset({"command", "profile", "label", "directory"})
"""Arguments by which ASE's calculators are told what to run, and where to write."""


class LabelerResources:
    """The labeler's warm engine, and what this worker allows."""

    def __init__(
        self,
        scratch: Path,
        threads: int = 1,
        allowed_calculators: frozenset[str] = SHIPPED,
        allowed_codes: Collection[str] = CODES,
        allow_programs: bool = False,
    ) -> None:
        """`scratch`: a private folder; `threads` of one label; `allowed_calculators`: ASE
        calculators by dotted name that campaigns may ask for; `allowed_codes`: labeling codes;
        `allow_programs`: whether a campaign may name a program in a calculator's arguments."""
        self.engine = ChildProcess(
            "dpstream.services.labeler.child", scratch.resolve() / "labeler", threads
        )
        self.allowed_calculators = allowed_calculators
        self.allowed_codes = allowed_codes
        self.allow_programs = allow_programs

    @classmethod
    def at_home(cls, scratch: Path, labels: LabelSettings) -> LabelerResources:
        """For a user's own campaign on the user's own machine: what the spec names is allowed."""
        named = {str(labels.settings["calculator"])} if "calculator" in labels.settings else set()
        return cls(scratch, allowed_calculators=SHIPPED | named, allow_programs=True)

    def refusal(self, recipe: Recipe) -> str | None:
        """Why this worker must not compute by `recipe`, if so."""
        if recipe.code not in self.allowed_codes:
            return f"{recipe.code} is not among this worker's allowed codes"
        if recipe.code != "ase":
            return None
        calculator = recipe.settings["calculator"]
        if calculator not in self.allowed_calculators:
            return f"{calculator} is not among this worker's allowed calculators"
        programs = PROGRAMS.intersection(recipe.settings["arguments"])
        if programs and not self.allow_programs:
            return f"a campaign may not name a program: arguments.{min(programs)}"
        return None

    def start(self) -> None:
        """Start the engine child ahead of the first task."""
        self.engine.start()

    def close(self) -> None:
        self.engine.kill()
