"""`docs/dp-gen-keys.md`, made from the tables that the import goes by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from dpstream.dpgen.document import Key
from dpstream.dpgen.keys import (
    DATA,
    EXPLORATION,
    JOBS,
    LABELING,
    LEFT_TO_TEMPLATE,
    PARAM,
    REVISIONS,
    TEMPLATE,
    TRAINING,
)
from dpstream.dpgen.machine import PART, RESOURCES, TOP
from dpstream.dpgen.simplify import SIMPLIFY
from dpstream.dpgen.styles import ELSEWHERE, STYLES

HEAD = """# Every key of DP-GEN

What `dpstream import` makes of each key of `dpgen run` 0.14, `dpstream simplify` of those of `dpgen
simplify`, and of the older ones that are still about. A refused key stops the import, and the words
say what to do instead; with a value that asks for nothing (`false`, an empty list) it may stay.
Keys that begin with an underscore are comments.
This page is made by `make schema` from the tables that the import goes by; [dp-gen.md](dp-gen.md)
explains.
"""
SAID = {"mapped": "", "unused": "*not used:* ", "refused": "*refused:* "}


def markdown() -> str:
    """The whole page."""
    others = PARAM[len((*DATA, *TRAINING, *EXPLORATION, *LABELING)) :]
    parts = [
        ("param.json: data", DATA),
        ("param.json: training", TRAINING),
        ("param.json: exploration", (*EXPLORATION, *others)),
        ("param.json: model_devi_jobs[]", JOBS),
        ("param.json: model_devi_jobs[] with a template", tuple(LEFT_TO_TEMPLATE.values())),
        ("param.json: model_devi_jobs[].template", TEMPLATE),
        ("param.json: model_devi_jobs[].rev_mat, sys_rev_mat.*", REVISIONS),
        ("param.json: labeling", LABELING),
        ("simplify's param.json: its own keys, and those with another meaning", SIMPLIFY),
    ]
    for name, style in STYLES.items():
        parts.append((f"fp_style {name}", style.keys))
        if style.params:
            parts.append((f"fp_style {name}: fp_params", style.params))
    parts += [
        ("machine.json", TOP),
        ("machine.json: train, model_devi, fp", PART),
        ("machine.json: resources", RESOURCES),
    ]
    body = "".join(line for title, keys in parts for line in _section(title, keys))
    other = "".join(f"| `{name}` | {why} |\n" for name, why in ELSEWHERE.items())
    return f"{HEAD}{body}\n## Other fp_styles\n\n| fp_style | |\n|---|---|\n{other}"


def _section(title: str, keys: Sequence[Key]) -> Iterator[str]:
    """A table; neighbours of which the same is said share a line."""
    yield f"\n## {title}\n\n| key | becomes |\n|---|---|\n"
    for (fate, words), group in groupby(keys, lambda key: (key.fate, key.words)):
        names = ", ".join(f"`{key.name}`" for key in group)
        yield f"| {names} | {SAID[fate]}{words.replace('|', chr(92) + '|')} |\n"
