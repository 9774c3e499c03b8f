"""`dpstream import`: converts DP-GEN's files to a campaign spec.

`dpstream.dpgen` does the conversion; this module prints a table that accounts for every key and
writes the spec. `machine.json` has no counterpart in a spec: its keys are explained only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dpstream.dpgen.key_table import KeyLine, is_param, read
from dpstream.dpgen.load import convert_file, spec_of
from dpstream.dpgen.machine import WorkerCommand, read_machine
from dpstream.dpgen.param import Converted
from dpstream.shared.errors import SpecError, write_errors
from dpstream.shared.spec.errors import read_document
from dpstream.terminal.console import console, say
from dpstream.terminal.tables import text_table


def import_(
    param: Annotated[
        Path, typer.Argument(metavar="PARAM", help="DP-GEN's param.json (JSON or YAML).")
    ],
    machine: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MACHINE]",
            help="DP-GEN's machine file; import prints the worker commands that replace it.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The spec to write.")
    ] = Path("campaign.yaml"),
    from_run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Working folder of a `dpgen run` with this param.json: continue after its last "
            "complete iteration, with all its labels.",
        ),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            help="Label with this code and its defaults instead of fp_style.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the campaign.")
    ] = None,
) -> None:
    """Convert DP-GEN's param.json and machine.json to a campaign spec. Starts nothing.

    Prints what each key becomes. The campaign runs as in DP-GEN: lockstep, each job once and in
    order, random selection, no audit. To use more of dpstream, set `repeat: true` in a stage,
    `mode: streaming` or `audit.per_round`.
    """
    if output.exists():
        raise SpecError(f"--output: {output}: already exists; give another file name")
    converted = convert_file(param, output.parent, name, code, from_run)
    spec_of(converted, param)
    workers, lines = _machine(machine)
    _write(converted, param, output)
    console.print(key_table(f"{param}", converted.lines))
    if machine is not None:
        console.print(key_table(f"{machine}", lines), *_started(workers), sep="\n")
    for text in _closing(converted, output):
        say(console, text)


def check_machine(param: Path, machine: Path | None) -> None:
    """Check a machine file, and print that workers on this machine do not use it."""
    if machine is None:
        return
    if not is_param(read_document(param)):
        raise SpecError(
            f"{machine}: a machine file is allowed only with DP-GEN's param.json, not with {param}"
        )
    say(console, machine_note(machine))


def machine_note(machine: Path) -> str:
    """How a run on this machine treats a machine file. Raises `SpecError` if it is invalid."""
    _machine(machine)
    return f"{machine}: not used by workers on this machine; dpstream import explains its keys"


def _machine(path: Path | None) -> tuple[list[WorkerCommand], list[KeyLine]]:
    if path is None:
        return [], []
    try:
        return read_machine(read(path))
    except SpecError as error:
        text = str(error)
        raise SpecError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _write(converted: Converted, param: Path, output: Path) -> None:
    head = "".join(
        f"# {line}\n"
        for line in (
            f"converted from DP-GEN's {param.name}; runs as in DP-GEN, except for:",
            *converted.differences,
        )
    )
    body = yaml.safe_dump(
        converted.document, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )
    with write_errors(f"--output: {output}"):
        output.write_text(head + body, encoding="utf-8")


# --------------------------------------------------------------------------------------- output


def key_table(title: str, lines: Iterable[KeyLine]) -> Table:
    """A table of every key with its value and what it becomes."""
    table = text_table("key", "value", "becomes", title=title, title_justify="left")
    for line in lines:
        words = line.words if line.fate == "mapped" else f"not used: {line.words}"
        table.add_row(Text(line.key), Text(line.value), Text(words))
    return table


def _started(workers: Sequence[WorkerCommand]) -> list[RenderableType]:
    """The commands that start the described workers."""
    lines: list[RenderableType] = []
    for worker in workers:
        cores = "" if worker.cores is None else f"; {worker.cores} cores"
        program = f"; command: {worker.command}" if worker.service == "labeler" else ""
        lines.append(
            Text(f"{worker.service}: python -m dpstream.services.{worker.service}{cores}{program}")
        )
        lines += [Text(f"    run first: {line}") for line in worker.before]
    return lines


def _closing(converted: Converted, output: Path) -> list[str]:
    jobs = len(converted.document["stages"])
    return [
        *(f"differs from DP-GEN: {text}" for text in converted.differences),
        f"at most {converted.labels} labels: {jobs} jobs, each explored once",
        f"wrote {output}; next: dpstream validate {output}",
    ]
