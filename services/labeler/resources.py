"""Resources that a labeler keeps between tasks: its child process and its permissions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.ase import SHIPPED
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import Device
from dpstream.shared.runtime.parser import Parser
from dpstream.shared.spec import LabelSettings
from dpstream.shared.values import Recipe

PROGRAMS = frozenset({"command", "profile", "label", "directory"})
"""Arguments of ASE calculators that name programs or folders."""


class LabelerResources:
    """The labeler's child process, and what campaigns may request of this worker."""

    def __init__(
        self,
        scratch: Path,
        threads: int = 1,
        allowed_calculators: frozenset[str] = SHIPPED,
        allowed_codes: Collection[str] = CODES,
        allow_programs: bool = False,
        grace: float = 25.0,
        device: Device | None = None,
        signing_key: str | None = None,
        reuse_unsigned: bool = True,
        reads: Collection[Path] = (),
    ) -> None:
        """`scratch`: a private folder; `threads` per label; `allowed_calculators`: dotted names of
        ASE calculators that campaigns may request; `allowed_codes`: labeling codes likewise;
        `allow_programs`: whether a campaign may name a program in a calculator's arguments;
        `grace`: seconds after which a stopped worker must have released its task; `device`: the
        only one that codes see, None: all visible ones; `signing_key`: Ed25519 private key for new
        labels, hexadecimal; `reuse_unsigned`: whether labels without signature are used again
        where the store lists signers; `reads`: files that codes may read besides the potentials."""
        folder = scratch.resolve() / "labeler"
        self.engine = ChildProcess(
            "dpstream.services.labeler.child",
            folder,
            threads,
            device,
            reads=(*machine_settings().labeler_potentials.values(), *reads),
        )
        self.parser = Parser(
            "dpstream.services.labeler.codes.outputs", scratch.resolve() / "parser"
        )
        """Of the outputs of programs; starts with the first."""
        self.allowed_calculators = allowed_calculators
        self.allowed_codes = allowed_codes
        self.allow_programs = allow_programs
        self.grace = grace
        self.signing_key = signing_key
        self.reuse_unsigned = reuse_unsigned

    @classmethod
    def for_local_run(cls, scratch: Path, labels: LabelSettings) -> LabelerResources:
        """Resources for a user's own campaign on their own machine: everything it names is
        allowed."""
        named = {str(labels.settings["calculator"])} if "calculator" in labels.settings else set()
        reads = [path for path in map(Path, _texts(labels.settings)) if path.is_absolute()]
        return cls(scratch, allowed_calculators=SHIPPED | named, allow_programs=True, reads=reads)

    def refusal(self, recipe: Recipe) -> str | None:
        """Reason why this worker must not compute by `recipe`, or None."""
        if recipe.code not in self.allowed_codes:
            return f"{recipe.code} is not in this worker's DPSTREAM_LABELER_CODES"
        if recipe.code != "ase":
            return None
        calculator = recipe.settings["calculator"]
        if calculator not in self.allowed_calculators:
            return f"{calculator} is not in this worker's DPSTREAM_LABELER_CALCULATORS"
        programs = PROGRAMS.intersection(recipe.settings["arguments"])
        if programs and not self.allow_programs:
            return (
                f"labels.settings.arguments.{min(programs)}: not allowed; it names a program or "
                "folder"
            )
        return None

    def start(self) -> None:
        """Start the child process before the first task."""
        self.engine.start()

    def close(self) -> None:
        self.engine.kill()
        self.parser.close()


def _texts(value: object) -> Iterator[str]:
    """The words of all texts in settings, of which some name files."""
    if isinstance(value, str):
        yield from value.split()
    elif isinstance(value, Mapping):
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, (list, tuple)):
        yield from (text for each in value for text in _texts(each))
