"""What of a CP2K input decides whether energy, forces and stress are printed, and which."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dpstream.services.labeler.codes.cp2k.input import InputLine, Path, Tree, lines_of

LEVELS = ("SILENT", "LOW", "MEDIUM", "HIGH", "DEBUG")
LEVEL_NAMES = ("PRINT_LEVEL", "IOLEVEL")
DEFAULT_LEVEL = "MEDIUM"
FORCES: Path = ("FORCE_EVAL", "PRINT", "FORCES")
STRESS: Path = ("FORCE_EVAL", "PRINT", "STRESS_TENSOR")
PRINTED: Mapping[Path, str] = {
    FORCES: "HIGH",
    ("FORCE_EVAL", "PRINT", "PROGRAM_RUN_INFO"): "LOW",
    ("FORCE_EVAL", "DFT", "SCF", "PRINT", "PROGRAM_RUN_INFO"): "LOW",
}
"""Sections that print what every label needs, with the print level from which CP2K does so."""
TENSOR: Path = ("FORCE_EVAL", "STRESS_TENSOR")
FIELD: Path = ("FORCE_EVAL", "DFT", "PERIODIC_EFIELD")
PERIODIC: Path = ("FORCE_EVAL", "DFT", "POISSON", "PERIODIC")
TO_FILE = "__STD_OUT__"
"""The file name that stands for the standard output."""


def check_printed(tree: Tree) -> None:
    """Raises ValueError if CP2K would not print what a label needs, or a stress that is not whole.
    `tree`: the input, with names in capitals."""
    for path in PRINTED:
        _check_section(tree, path)
    given = _tensor(tree)
    if given not in ("ANALYTICAL", "NONE"):
        raise ValueError(
            f"{_dotted(TENSOR)}: {given}: use ANALYTICAL; NUMERICAL repeats the calculation for "
            "each strain, and the diagonal is not the whole tensor"
        )
    if given == "NONE":
        return
    if isinstance(_at(tree, FIELD), Mapping):
        raise ValueError(f"{_dotted(TENSOR)}: give NONE; CP2K has no stress in a PERIODIC_EFIELD")
    if _periodic(tree) not in ("XYZ", "NONE"):
        raise ValueError(
            f"{_dotted(TENSOR)}: give NONE; CP2K has no stress with POISSON.PERIODIC "
            f"{_periodic(tree)}"
        )


def without_stress(tree: Tree) -> str | None:
    """The keyword because of which CP2K prints no stress, or one that is not the derivative of the
    energy, as in cells without periodicity; None if there is none."""
    if _tensor(tree) == "NONE":
        return f"{_dotted(TENSOR)}: NONE"
    if _periodic(tree) != "XYZ":
        return f"{_dotted(PERIODIC)}: {_periodic(tree)}"
    section = _at(tree, STRESS)
    printed = isinstance(section, Mapping) and _is_printed(tree, section, "HIGH")
    return None if printed and not _file(section) else _dotted(STRESS)


def is_stress_whole(text: str) -> bool:
    """Whether the stress that an input asks for, if it asks for one, is the energy's derivative."""
    with suppress(ValueError):
        return _periodic(tree_of(text)) == "XYZ"
    return True


def _check_section(tree: Tree, path: Path) -> None:
    section = _at(tree, path)
    if isinstance(section, Mapping) and _file(section):
        raise ValueError(f"{_dotted(path)}.FILENAME: remove it; dpstream reads the standard output")
    if not _is_printed(tree, section if isinstance(section, Mapping) else None, PRINTED[path]):
        level = next((name for name in LEVEL_NAMES if _at(tree, ("GLOBAL", name))), None)
        quiet = f" (GLOBAL.{level}: {_level(tree)})" if level else ""
        raise ValueError(f"{_dotted(path)}: must be ON{quiet}; a label is read from it")


def _is_printed(tree: Tree, section: Mapping[str, Any] | None, default: str) -> bool:
    """Whether CP2K prints at this section: it is on, or its level is reached. A section without
    parameter is on; without a section the `default` level decides."""
    word = default if section is None else _word(section.get("_", "ON"))
    if word in LEVELS:
        return LEVELS.index(word) <= LEVELS.index(_level(tree))
    return "$" in word or word in ("", "ON", "T", ".T.", "TRUE", ".TRUE.", "YES")


def _level(tree: Tree) -> str:
    given = (_at(tree, ("GLOBAL", name)) for name in LEVEL_NAMES)
    level = next((_word(each) for each in given if each is not None), DEFAULT_LEVEL)
    return level if level in LEVELS else DEFAULT_LEVEL


def _tensor(tree: Tree) -> str:
    """The value of the keyword; of one that is given by a variable, the usual one."""
    word = _word(_at(tree, TENSOR) or "NONE")
    return "ANALYTICAL" if "$" in word else word


def _periodic(tree: Tree) -> str:
    """The directions in which the electrostatic potential is periodic."""
    word = _word(_at(tree, PERIODIC) or "XYZ")
    return "XYZ" if "$" in word else word


def _file(section: Mapping[str, Any]) -> str:
    name = _word(section.get("FILENAME", ""))
    return "" if name == TO_FILE else name


def _at(tree: Tree, path: Path) -> Any:
    """What stands at `path`; None if nothing does. Of a repeated section the last counts."""
    found: Any = tree
    for name in path:
        found = found[-1] if isinstance(found, list) and found else found
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _word(value: Any) -> str:
    return str(value).strip().upper()


def _dotted(path: Path) -> str:
    return ".".join(path)


def tree_of(template: str) -> Tree:
    """The sections and keywords of an input, names and values in capitals; of repeated ones the
    last. Raises ValueError if a section is not closed."""
    tree: dict[str, Any] = {}
    for line in lines_of(template):
        if line.words and not line.closes:
            _add(tree, line)
    return tree


def _add(tree: dict[str, Any], line: InputLine) -> None:
    for name in line.path:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    name, value = line.words[0], " ".join(line.words[1:])
    if line.opens:
        tree.update({"_": value} if value else {})
    elif not isinstance(tree.get(name), dict):
        tree[name] = value
