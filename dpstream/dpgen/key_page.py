"""Generates `docs/dp-gen-keys.md` from the tables that the import uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from dpstream.dpgen.fp_styles import ELSEWHERE, STYLES
from dpstream.dpgen.gromacs import GROMACS_JOB, GROMACS_PARAM, SETTINGS
from dpstream.dpgen.key_table import Key
from dpstream.dpgen.keys import (
    DATA,
    ENGINES,
    EXPLORATION,
    JOBS,
    LABELING,
    LEFT_TO_TEMPLATE,
    PARAM,
    REVISIONS,
    TEMPLATE,
    TRAINING,
)
from dpstream.dpgen.machines.machine import MACHINE, PART, RESOURCES, TOP
from dpstream.dpgen.simplify import SIMPLIFY

HEAD = """# Every key of DP-GEN

This page lists how `dpstream import` treats each key of `dpgen run` 0.14, and `dpstream simplify`
each key of `dpgen simplify`, including older names that are still in use. A refused key stops the
import with a message that names the alternative; a value without effect (`false`, an empty list) is
accepted. Other keys, and those of another `fp_style` or engine, are ignored and named; only a
probable misspelling of a key that matters is refused. Keys that begin with an underscore are
comments. [dp-gen.md](dp-gen.md) introduces the
import. `make schema` generates this page from the tables that the import uses.
"""
PREFIXES = {
    "mapped": "",
    "unused": "*not used:* ",
    "refused": "*refused:* ",
    "ignored": "*ignored:* ",
}


GROMACS = "with model_devi_engine gromacs"


def markdown() -> str:
    """The complete page."""
    others = PARAM[len((*DATA, *TRAINING, *EXPLORATION, *LABELING)) :]
    parts = [
        ("param.json: data", DATA),
        ("param.json: training", TRAINING),
        ("param.json: exploration", (*EXPLORATION, *others)),
        ("param.json: model_devi_jobs[]", JOBS),
        (f"param.json: {GROMACS}", GROMACS_PARAM),
        (f"param.json: model_devi_jobs[] {GROMACS}", GROMACS_JOB),
        (f"param.json: gromacs_settings {GROMACS}", SETTINGS),
        ("param.json: model_devi_jobs[] with a template", tuple(LEFT_TO_TEMPLATE.values())),
        ("param.json: model_devi_jobs[].template", TEMPLATE),
        ("param.json: model_devi_jobs[].rev_mat, sys_rev_mat.*", REVISIONS),
        ("param.json: labeling", LABELING),
        ("param.json of simplify: its own keys, and keys with another meaning", SIMPLIFY),
    ]
    for name, style in STYLES.items():
        parts.append((f"fp_style {name}", style.keys))
        if style.params:
            parts.append((f"fp_style {name}: fp_params", style.params))
    parts += [
        ("machine.json", TOP),
        ("machine.json: train, model_devi, fp", PART),
        ("machine.json: machine and its remote_profile", MACHINE),
        ("machine.json: resources", RESOURCES),
    ]
    body = "".join(line for title, keys in parts for line in _section(title, keys))
    engines = "".join(f"| `{name}` | {why} |\n" for name, why in ENGINES.items())
    other = "".join(f"| `{name}` | {why} |\n" for name, why in ELSEWHERE.items())
    return (
        f"{HEAD}{body}\n## Other fp_styles\n\n| fp_style | |\n|---|---|\n{other}"
        f"\n## Other engines\n\n| model_devi_engine | |\n|---|---|\n{engines}"
    )


def _section(title: str, keys: Sequence[Key]) -> Iterator[str]:
    """One table; adjacent keys with the same text share a row."""
    yield f"\n## {title}\n\n| key | becomes |\n|---|---|\n"
    for (fate, words), group in groupby(keys, lambda key: (key.fate, key.words)):
        names = ", ".join(f"`{key.name}`" for key in group)
        yield f"| {names} | {PREFIXES[fate]}{words.replace('|', chr(92) + '|')} |\n"
