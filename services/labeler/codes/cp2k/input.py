"""CP2K input files: renders nested keywords as text and fills in a user's template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tree = Mapping[str, Any]
"""Sections and keywords by name in capitals. `_` is a section's parameter, `*` its bare lines; a
list is a section or keyword that is repeated."""
Path = tuple[str, ...]

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*|_")
KIND: Path = ("FORCE_EVAL", "SUBSYS", "KIND")
CELL: Path = ("FORCE_EVAL", "SUBSYS", "CELL")
COORD: Path = ("FORCE_EVAL", "SUBSYS", "COORD")
DFT: Path = ("FORCE_EVAL", "DFT")
SCF: Path = (*DFT, "SCF")
RESTART: Tree = {"_": "ON", "EACH": {"QS_SCF": 1}, "BACKUP_COPIES": 1}
"""The wavefunction is written after each SCF iteration: an interrupted run continues from it."""
NEEDED: tuple[Path, ...] = (
    CELL,
    COORD,
    DFT,
    ("FORCE_EVAL", "PRINT", "FORCES"),
    ("FORCE_EVAL", "PRINT", "STRESS_TENSOR"),
)
"""Sections that a template must contain exactly once."""
INCLUDES = ("@INCLUDE", "@XCTYPE", "@FFTYPE")
PLAIN = re.compile(r"[\w+-]+(?:\.[\w+-]*)?")
"""Values of variables from which no path can be composed."""
ALLOWED = ("GLOBAL", "FORCE_EVAL")
SECTIONS = frozenset({("GLOBAL",), ("FORCE_EVAL",), DFT, KIND[:-1]})
"""Names that are always sections."""
ELSEWHERE: Mapping[Path, str] = {
    CELL: "dpstream writes the frame's cell",
    COORD: "dpstream writes the frame's atoms",
    ("FORCE_EVAL", "SUBSYS", "TOPOLOGY"): "dpstream writes the frame's atoms",
    (*DFT, "CHARGE"): "give labels.charge",
    (*DFT, "MULTIPLICITY"): "give labels.multiplicity",
    ("GLOBAL", "RUN_TYPE"): "dpstream sets ENERGY_FORCE",
}
"""Keywords that the user may not set, with the reason or the alternative."""


# ----------------------------------------------------------------------------------- keywords


def checked(tree: Any, path: Path = ()) -> dict[str, Any]:
    """A user's nested keywords with names in capitals. Raises ValueError for the first wrong
    one."""
    if not isinstance(tree, dict):
        raise ValueError(f"{'.'.join(path)}: must be a mapping of keys")
    return {
        key.upper(): _checked_value(value, (*path, key.upper()))
        for key, value in ((_checked_name(key, path), value) for key, value in tree.items())
    }


def _checked_name(key: Any, path: Path) -> str:
    if not isinstance(key, str) or not NAME.fullmatch(key):
        raise ValueError(f"{'.'.join((*path, str(key)))}: not a keyword of CP2K")
    if not path and key.upper() not in ALLOWED:
        raise ValueError(f"{key}: not allowed at the top level; allowed: {', '.join(ALLOWED)}")
    reason = ELSEWHERE.get((*path, key.upper()))
    if reason is not None:
        raise ValueError(f"{'.'.join((*path, key))}: remove it; {reason}")
    return key


def _checked_value(value: Any, path: Path) -> Any:
    if path == KIND:
        sections = value if isinstance(value, list) else [value]
        return [kind for each in sections for kind in kinds(checked(each, path))]
    if isinstance(value, dict) or path in SECTIONS:
        return checked(value, path)
    if isinstance(value, list):
        return [_checked_value(each, path) for each in value]
    if isinstance(value, str) and ("\n" in value or value.startswith("&")):
        raise ValueError(f"{'.'.join(path)}: a value is one line of text")
    return value


def kinds(tree: Tree) -> list[dict[str, Any]]:
    """`KIND: {_: [H, O], POTENTIAL: [a, b]}` as one section per kind."""
    names = tree.get("_")
    if not isinstance(names, list):
        return [dict(tree)]
    for key, value in tree.items():
        if not isinstance(value, list) or len(value) != len(names):
            raise ValueError(f"{'.'.join(KIND)}.{key}: must be a list as long as _ ({names})")
    return [{key: value[i] for key, value in tree.items()} for i in range(len(names))]


def merged(base: Tree, over: Tree) -> dict[str, Any]:
    """`base` overridden by `over`: sections merge, keywords replace, null removes, and a `KIND`
    merges with the one of the same name."""
    result = dict(base)
    for key, value in over.items():
        known = result.pop(key, None)
        if key == "KIND":
            result[key] = _merged_kinds(known or [], value if isinstance(value, list) else [value])
        elif isinstance(value, dict):
            result[key] = merged(known if isinstance(known, dict) else {}, value)
        elif value is not None:
            result[key] = value
    return result


def _merged_kinds(base: Sequence[Tree], over: Sequence[Tree]) -> list[dict[str, Any]]:
    named = {kind["_"]: dict(kind) for kind in base}
    for kind in over:
        named[kind.get("_")] = merged(named.get(kind.get("_"), {}), kind)
    return list(named.values())


def render(tree: Tree, indent: str = "") -> Iterator[str]:
    """Lines of input."""
    for key, value in tree.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                yield f"{indent}&{key} {_word(each.get('_', ''))}".rstrip()
                yield from render(each, indent + "  ")
                yield f"{indent}&END {key}"
            elif key != "_":
                yield f"{indent}{'' if key == '*' else key + ' '}{_word(each)}"


def _word(value: Any) -> str:
    return f".{str(value).upper()}." if isinstance(value, bool) else str(value)


# ----------------------------------------------------------------------------------- a template


@dataclass(frozen=True)
class InputLine:
    """One line of a template: the sections it stands in (its own included, where it begins or ends
    one) and its words, without comments, in capitals."""

    text: str
    path: Path
    words: tuple[str, ...]

    @property
    def opens(self) -> bool:
        return bool(self.words) and self.words[0].startswith("&") and not self.closes

    @property
    def closes(self) -> bool:
        return bool(self.words) and self.words[0].startswith("&END")


def lines_of(template: str) -> list[InputLine]:
    """The lines of a template; one that is continued by a backslash has the words of those that
    follow, which have none. Raises ValueError if a section is not closed."""
    path: Path = ()
    found = []
    for text, words in _continued(template.splitlines()):
        line = InputLine(text, path, words)
        if line.opens:
            path = (*path, line.words[0][1:])
        found.append(InputLine(text, path, line.words))
        if line.closes:
            path = path[:-1]
    if path:
        raise ValueError(f"section &{path[-1]} is not closed")
    return found


def _continued(texts: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each line with its words in capitals, without comments."""
    for number, text in enumerate(texts):
        if number and _words(texts[number - 1])[1]:
            yield text, ()
            continue
        words, continues = _words(text)
        for further in texts[number + 1 :] if continues else ():
            more, continues = _words(further)
            words += more
            if not continues:
                break
        yield text, words


def _words(text: str) -> tuple[tuple[str, ...], bool]:
    """The words of one line, and whether the next one continues it."""
    code = re.split(r"[!#]", text)[0].rstrip()
    return tuple(code.removesuffix("\\").upper().split()), code.endswith("\\")


def check_template(template: str) -> None:
    """Raises ValueError if a template would not give a label, or sets what the user may not set."""
    lines = lines_of(template)
    for needed in NEEDED:
        count = sum(line.opens and line.path == needed for line in lines)
        if count != 1:
            raise ValueError(f"&{'/&'.join(needed)}: {count} of them; must be one")
    for line in lines:
        _check_line(line)


def _check_line(line: InputLine) -> None:
    if not line.words or line.opens or line.closes:
        return
    if line.words[0].startswith("@") and line.path not in (CELL, COORD):
        _check_directive(line)
    key, value = (*line.path, line.words[0]), line.words[1:]
    if key in ((*DFT, "CHARGE"), (*DFT, "MULTIPLICITY")):
        raise ValueError(f"{'/'.join(key)}: remove it; {ELSEWHERE[key]}")
    if key == ("GLOBAL", "RUN_TYPE") and value != ("ENERGY_FORCE",):
        raise ValueError(f"{'/'.join(key)}: must be ENERGY_FORCE")
    if key == (*CELL, "PERIODIC") and value != ("XYZ",):
        raise ValueError(f"{'/'.join(key)}: must be XYZ")
    if key[:-1] == (*COORD[:-1], "TOPOLOGY") and key[-1].startswith("COORD_FILE"):
        raise ValueError(f"{'/'.join(key)}: remove it; {ELSEWHERE[COORD]}")


def _check_directive(line: InputLine) -> None:
    """An included file is not checked, and a variable may become part of a file name."""
    if line.words[0].startswith(INCLUDES):
        raise ValueError(f"{line.text.strip()!r}: remove it; give the whole input")
    if line.words[0] == "@SET" and not all(PLAIN.fullmatch(word) for word in line.words[1:]):
        raise ValueError(f"{line.text.strip()!r}: a variable must be a number or a plain word")


def filled(template: str, cell: Sequence[str], coord: Sequence[str], dft: Sequence[str]) -> str:
    """The template with these lines as the content of &CELL and &COORD, `dft` added to &DFT, and
    `RESTART` to &SCF unless it has one; the rest is unchanged."""
    own = {CELL: cell, COORD: coord}
    added = {**own, DFT: dft, **_restart_lines(template)}
    lines: list[str] = []
    for line in lines_of(template):
        if line.path not in own or line.opens or line.closes:
            lines.append(line.text)
        if line.opens:
            lines += added.get(line.path, ())
    return "\n".join(lines) + "\n"


def _restart_lines(template: str) -> dict[Path, list[str]]:
    """`RESTART` as lines, by the section of the template to which they belong."""
    printing = (*SCF, "PRINT")
    sections = {line.path for line in lines_of(template) if line.opens}
    if (*printing, "RESTART") in sections:
        return {}
    if printing in sections:
        return {printing: list(render({"RESTART": RESTART}))}
    return {SCF: list(render({"PRINT": {"RESTART": RESTART}}))}


def has_keyword(template: str, path: Path, names: Sequence[str]) -> bool:
    words = (line.words[0] for line in lines_of(template) if line.path == path and line.words)
    return any(word in names for word in words)


def with_keyword(text: str, path: Path, name: str, value: str) -> str:
    """An input in which the sections `path` set the keyword `name` to this value."""
    lines: list[str] = []
    for line in lines_of(text):
        if line.opens or line.path != path or line.words[:1] != (name,):
            lines.append(line.text)
        if line.opens and line.path == path:
            lines.append(f"{name} {value}")
    return "\n".join(lines) + "\n"
