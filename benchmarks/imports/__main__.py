"""`python -m benchmarks.imports [FOLDER]…`: imports every param and machine file of `dpgen run` in
the folders (default: DPSTREAM_TEST_DATA), and prints how many were refused and why."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpstream.dpgen.fp_styles import ELSEWHERE
from dpstream.dpgen.key_table import is_param, read
from dpstream.dpgen.keys import ENGINES
from dpstream.dpgen.load import MACHINES, convert_file, spec_of
from dpstream.dpgen.machines.machine import read_machine
from dpstream.dpgen.machines.pools import Labels, read_pools
from dpstream.dpgen.simplify import is_simplify
from dpstream.shared.errors import SpecError

Kind = Literal["param", "machine"]
PURPOSE = re.compile(
    "|".join(
        (
            *(f"model_devi_engine: '{name}'" for name in ENGINES),
            *(f"fp_style: '{re.escape(name)}'" for name in ELSEWHERE),
            "fp_dpks_descriptor: ",
        )
    )
)
"""Refusals of what dpstream does not do on purpose."""
INVALID = re.compile(
    "|".join(
        (
            r"fp_pp_files: \d+ files for",
            ".*: unknown key; did you mean",
            r"default_training_param: .*\.sel: \d+ numbers .* elements of type_map",
            r"model_devi_jobs\.\d+\.temps: \[\]: must not be empty",
        )
    )
)
"""Refusals of what DP-GEN 0.14 and DeePMD-kit cannot run, either."""
VALUE = re.compile(r"^([\w.\[\]\"]+: )('[^']*'|\{.*?…|\[[^\]]*\]?…?|True)(?=: )")


@dataclass(frozen=True)
class Tried:
    """One file. `refusal`: the message, empty if it was imported; without the file's name."""

    path: Path
    kind: Kind
    refusal: str = ""

    @property
    def on_purpose(self) -> bool:
        return PURPOSE.match(self.refusal) is not None

    @property
    def invalid(self) -> bool:
        return INVALID.match(self.refusal) is not None

    @property
    def reason(self) -> str:
        """The refusal without the refused value, unless it names an engine or a style."""
        return self.refusal if self.on_purpose else VALUE.sub(r"\1…", self.refusal)


def tried(folder: Path) -> Iterator[Tried]:
    """The import of every file for `dpgen run` in `folder`, at any depth."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        try:
            values = read(path)
        except SpecError:
            continue  # e.g. a list, or JSON with remarks
        kind = _kind(values)
        if kind is not None:
            yield Tried(path, kind, _refusal(path, values, kind))


SUFFIXES = (".json", ".yaml", ".yml")


def _kind(values: dict[str, Any]) -> Kind | None:
    if is_param(values) and not is_simplify(values):
        return "param"
    return "machine" if len(MACHINES & values.keys()) > 1 else None


def _refusal(path: Path, values: dict[str, Any], kind: Kind) -> str:
    run: Callable[[], object] = (
        (lambda: spec_of(convert_file(path, path.parent, None, None, None), path))
        if kind == "param"
        else (lambda: read_pools(read_machine(values)[0], Labels("vasp", is_own=True)))
    )
    try:
        run()
    except SpecError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def table(files: Iterable[Tried]) -> Iterator[str]:
    """A Markdown table with a row per reason, and the share of files that can be imported."""
    listed = list(files)
    yield "| files | tried | imported | refused on purpose | invalid | refused otherwise |"
    yield "|---|---|---|---|---|---|"
    for kind in ("param", "machine"):
        own = [each for each in listed if each.kind == kind]
        taken = sum(not each.refusal for each in own)
        meant, invalid = sum(each.on_purpose for each in own), sum(each.invalid for each in own)
        others = len(own) - taken - meant - invalid
        yield f"| {kind} | {len(own)} | {taken} | {meant} | {invalid} | {others} |"
    yield from ("", "| why | files |", "|---|---|")
    reasons = Counter(each.reason for each in listed if each.refusal)
    for reason, count in reasons.most_common():
        yield f"| {reason} | {count} |"
    rest = [each for each in listed if each.kind == "param" and not each.on_purpose]
    valid = [each for each in rest if not each.invalid]
    yield f"\nimported of the param files that need nothing refused on purpose: {_share(rest)}"
    yield f"imported of those that DP-GEN itself can run: {_share(valid)}"


def _share(files: list[Tried]) -> str:
    taken = sum(not each.refusal for each in files)
    return f"{taken} of {len(files)}" + (f" ({taken / len(files):.1%})" if files else "")


def main(folders: list[str]) -> None:
    given = folders or list(filter(None, [os.environ.get("DPSTREAM_TEST_DATA")]))
    if not given:
        sys.exit("give a folder, or set DPSTREAM_TEST_DATA")
    for folder in given:
        found = list(tried(Path(folder)))
        for each in found:
            if each.refusal:
                print(f"{each.path.relative_to(folder)}: {each.refusal}", file=sys.stderr)
        print("\n".join(table(found)))


if __name__ == "__main__":
    main(sys.argv[1:])
