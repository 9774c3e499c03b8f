"""Dynamics by the user's own LAMMPS input, with the committee's forces.

dpstream sets up units, atoms, forces and output; the other commands of the input are passed on in
their order. A template is data of a campaign, so only safe commands are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from dpstream.services.explorer.engines.bias import plumed_fix
from dpstream.services.explorer.engines.dynamics import MolecularDynamics
from dpstream.services.explorer.engines.swap_mc import LARGEST_SEED
from dpstream.services.explorer.lammps.script import Script
from dpstream.shared.spec import Md
from dpstream.shared.spec.engines import Row, Template, Word
from dpstream.shared.spec.errors import did_you_mean
from dpstream.shared.values import Condition, stable_seed

# fmt: off
OURS = {
    "atom_modify", "box", "comm_modify", "dimension", "dump", "dump_modify", "echo", "log",
    "newton", "pair_coeff", "pair_modify", "pair_style", "processors", "read_data",
    "restart", "thermo", "thermo_modify", "thermo_style", "undump", "write_data",
    "write_dump", "write_restart"
}
"""Commands that dpstream gives itself; those of the template are dropped."""
PASSED = {
    "compute", "compute_modify", "fix", "fix_modify", "group", "mass", "neigh_modify", "neighbor",
    "region", "run_style", "uncompute", "unfix", "variable", "velocity"
}
# fmt: on
FIXED = {"units": "metal", "atom_style": "atomic"}
"""Commands with a fixed argument."""
STYLES = {
    "fix": re.compile(
        r"(?!python|imd|ipi|mdi|external|plumed|colvars|gcmc|deposit|evaporate|pour|append)[a-z0-9/]+"
    ),
    "variable": re.compile(r"equal|string|index|loop|atom|vector|format|delete|internal"),
}
"""Styles that execute no code, do not communicate and do not add or remove atoms."""
ELSEWHERE = re.compile(r"[/~]\S|.*\.\.")
NAMED = re.compile(r"(?:[\w+-]|\$\w|\$\{\w+\})+(?:\.[\w+-]*)*")
FORMAT = re.compile(r"%0?\d*(?:\.\d+)?[efgEFG]")
VALUES = {"string": NAMED, "index": NAMED, "format": FORMAT}
"""Values of variables that are not numeric. LAMMPS replaces them within a word before it splits
the line: a value with a slash or a blank, or one that begins with a dot, could turn a name into a
path."""
IMMEDIATE = re.compile(r"\$\([^()]*(?:\([^()]*\)[^()]*)*:(%[^)]*)\)")
"""A number that is computed and formatted in its place."""
PLUMED_FIX = "dpgen_plm"


@dataclass(frozen=True)
class Parsed:
    """Commands of a template in order: `setup`, given once atoms and forces are defined, then
    `velocity` at the start of a trajectory. `plumed`: index in `setup` of the PLUMED fix, if
    any."""

    setup: tuple[str, ...]
    velocity: tuple[str, ...]
    plumed: int | None


class UserTemplate(MolecularDynamics):
    def amended(self, script: Script) -> Script:
        request, settings = self.request, self.request.settings
        assert isinstance(settings, Template)
        condition = request.command.condition
        seed = stable_seed(request.command.seed, "template", request.command.from_chunk)
        words = standard_words(request.md, condition, seed)
        row = settings.rows(condition.system)[condition.revision or 0]
        parsed = parse(settings, words, row, request.md, request.resources.trusting)
        setup = list(parsed.setup)
        if parsed.plumed is not None:
            setup.insert(parsed.plumed, plumed_fix(self, plumed_text(settings, words, row)))
        common = [c for c in script.dynamics if not c.startswith(("fix ", "fix_modify "))]
        velocity = list(parsed.velocity) if script.velocity else []
        return replace(script, dynamics=common + setup, velocity=velocity, single_use=True)


def standard_words(md: Md, condition: Condition, seed: int) -> dict[str, Word]:
    """Variables that every template may use."""
    return {
        "V_NSTEPS": md.steps,
        "V_TEMP": condition.temperature,
        "V_PRES": condition.pressure or 0.0,
        "V_DT": md.timestep,
        "V_SEED": seed % LARGEST_SEED + 1,
    }


def plumed_text(settings: Template, words: Mapping[str, Word], row: Row) -> str:
    """The PLUMED input for one condition; variables of the LAMMPS input apply unless overridden."""
    return revised(settings.plumed or "", {**words, **row[0], **row[1]})


def revised(text: str, words: Mapping[str, Word]) -> str:
    """`text` with every occurrence of a variable replaced by its value."""
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, str(words[word]))
    return text


def parse(
    settings: Template, words: Mapping[str, Word], row: Row, md: Md, trusting: bool = False
) -> Parsed:
    """The template for one condition. Raises ValueError, naming line and command, for commands that
    are not allowed and if steps or time step differ from those of `md`."""
    reader = _Reader(settings.plumed is not None, trusting, md)
    for number, command in _commands(revised(settings.lammps, {**words, **row[0]})):
        try:
            reader.read(command)
        except ValueError as error:
            raise ValueError(f"lammps: line {number}: {command!r}: {error}") from error
    if settings.plumed is not None and reader.plumed is None:
        raise ValueError(f"lammps: there is a PLUMED input, but no line `fix {PLUMED_FIX}`")
    return Parsed(tuple(reader.setup), tuple(reader.velocity), reader.plumed)


class _Reader:
    def __init__(self, with_plumed: bool, trusting: bool, md: Md) -> None:
        self.setup: list[str] = []
        self.velocity: list[str] = []
        self.plumed: int | None = None
        self._with_plumed, self._trusting, self._md = with_plumed, trusting, md
        self._numbers: dict[str, str] = {}
        self._over = False
        self._read: dict[str, Callable[[list[str]], None]] = {
            "run": self._run,
            "timestep": self._timestep,
            "boundary": self._boundary,
        }

    def read(self, command: str) -> None:
        name, *words = command.split()
        if self._over and name not in OURS:
            raise ValueError("comes after `run`, which must be the last command")
        if name in FIXED and words != [FIXED[name]]:
            raise ValueError(f"must be {name} {FIXED[name]}")
        if name in self._read:
            self._read[name](words)
        elif name == "fix" and words[:1] == [PLUMED_FIX]:
            self._plumed()
        elif name not in OURS and name not in FIXED:
            self._pass_on(name, words, command)

    def _pass_on(self, name: str, words: list[str], command: str) -> None:
        if not self._trusting:
            _refuse(name, words)
        if name == "variable" and words[1:2] == ["equal"] and len(words) == 3:
            self._numbers[words[0]] = words[2]
        (self.velocity if name == "velocity" else self.setup).append(command)

    def _plumed(self) -> None:
        if not self._with_plumed:
            raise ValueError("there is no PLUMED input; give engine.plumed")
        self.plumed = len(self.setup)

    def _run(self, words: list[str]) -> None:
        self._over = True
        self._same(words, self._md.steps, "md.steps")

    def _timestep(self, words: list[str]) -> None:
        self._same(words, self._md.timestep, "md.timestep")

    def _boundary(self, words: list[str]) -> None:
        if words != ["p", "p", "p"]:
            raise ValueError("must be boundary p p p; the structure sets the periodicity")

    def _same(self, words: list[str], expected: float, key: str) -> None:
        word = words[0] if words else ""
        name = re.fullmatch(r"\$\{(\w+)\}", word)
        value = self._numbers.get(name[1], word) if name else word
        try:
            same = float(value) == expected
        except ValueError:
            same = False
        if not same:
            raise ValueError(f"must be {expected:g}, the value of {key}")


def _refuse(name: str, words: list[str]) -> None:
    if name not in PASSED:
        hint = did_you_mean(name, PASSED) or "; allowed: " + ", ".join(sorted(PASSED))
        raise ValueError(f"{name} is not allowed in a template{hint}")
    place = 2 if name == "fix" else 1
    style = words[place] if len(words) > place else ""
    if name in STYLES and not STYLES[name].fullmatch(style):
        raise ValueError(f"{name} style {style!r} is not allowed in a template")
    if name == "variable" and style in VALUES:
        values = words[3:] if style == "format" else words[2:]
        _check_values(values, VALUES[style])
    for given in IMMEDIATE.findall(" ".join(words)):
        if not FORMAT.fullmatch(given):
            raise ValueError(f"format {given!r} is not allowed in a template")
    for word in words:
        if ELSEWHERE.match(word.strip("\"'")):
            raise ValueError(f"{word!r} is outside the worker's folder")


def _check_values(values: list[str], allowed: re.Pattern[str]) -> None:
    for value in values:
        if not allowed.fullmatch(value.strip("\"'") if allowed is FORMAT else value):
            raise ValueError(f"value {value!r}: must be a number, a plain word or a format like %g")


def _commands(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and commands, without comments and with continued lines joined."""
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.partition("#")[0].rstrip()
        start = start if pending else number
        if bare.endswith("&"):
            pending += bare[:-1] + " "
            continue
        command, pending = (pending + bare).strip(), ""
        if command:
            yield start, command
    if pending.strip():
        yield start, pending.strip()
