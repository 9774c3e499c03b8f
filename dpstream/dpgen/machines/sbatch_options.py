"""Reads `#SBATCH` lines of `custom_flags` into the keys of a pool.

As in dpdispatcher, they come last and so take precedence over the other resources.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

DIRECTIVE = "#SBATCH"
KEYS = {
    **dict.fromkeys(("-p", "--partition"), "partition"),
    **dict.fromkeys(("-A", "--account"), "account"),
    **dict.fromkeys(("-q", "--qos"), "qos"),
    **dict.fromkeys(("-t", "--time"), "time_limit"),
    **dict.fromkeys(("-N", "--nodes"), "nodes"),
    "--ntasks-per-node": "cpus",
    "--mem": "memory",
}
"""Options that a key of the pool sets."""
OURS = frozenset(
    {"-J", "--job-name", "-a", "--array", "--signal", "--requeue", "--parsable", "-W", "--wait"}
)
"""Options that the fleet engine needs for itself."""
MEMORY = re.compile(r"([1-9][0-9]*)([KMGT]?)[Bb]?", re.IGNORECASE)


@dataclass
class Options:
    """Keys of a pool; further options of sbatch; shell lines; what was left out, in words."""

    keys: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_options(lines: Sequence[str]) -> Options:
    """The options that `lines` of a batch script set."""
    found = Options()
    for line in map(str.strip, lines):
        if line.startswith(DIRECTIVE):
            for name, value in _options(shlex.split(line[len(DIRECTIVE) :], comments=True)):
                _add(found, name, value)
        elif line.startswith("#"):
            found.left_out.append(f"{line!r}: no option of sbatch")
        elif line:
            found.lines.append(line)
    return found


def memory_of(text: str) -> str | None:
    """Memory as a pool has it, e.g. `32G`; None for other values, e.g. 0 (all of a node)."""
    found = MEMORY.fullmatch(text)
    return None if found is None else f"{found[1]}{found[2].upper() or 'M'}"


def _add(found: Options, name: str, given: str | None) -> None:
    key = KEYS.get(name)
    value = None if key is None or given is None else _value(key, given)
    if name in OURS:
        found.left_out.append(f"{name}: the fleet engine sets it")
    elif key is not None and value is not None:
        found.keys[key] = value
    elif name.startswith("--"):
        found.flags.append(name if given is None else f"{name}={given}")
    else:
        found.flags += [name] if given is None else [name, given]


def _value(key: str, given: str) -> str | None:
    """The value as the pool has it; None if only sbatch understands it, e.g. `--nodes=2-4`."""
    if key == "memory":
        return memory_of(given)
    return None if key in ("nodes", "cpus") and not given.isdigit() else given


def _options(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options with their values: `-p x`, `-px`, `--name=x`, `--name x` or without value."""
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("--"):
            name, separator, value = word.partition("=")
            given = value if separator else None
        else:
            name, given = word[:2], word[2:] or None
        if given is None and left and not left[0].startswith("-"):
            given = left.pop(0)
        yield name, given
