"""`dpstream import`: DP-GEN's files as a campaign, with an account of every key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dpstream.commands.options import Code, MachineFile, NewName
from dpstream.dpgen.key_table import KeyLine, is_param, read
from dpstream.dpgen.load import convert_file, spec_of
from dpstream.dpgen.machine import WorkerCommand, read_machine
from dpstream.dpgen.param import Converted
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import read_document
from dpstream.terminal.console import console, say
from dpstream.terminal.tables import text_table


def import_(
    param: Annotated[
        Path, typer.Argument(metavar="PARAM", help="DP-GEN's param file, JSON or YAML.")
    ],
    machine: MachineFile = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The spec to write.")
    ] = Path("campaign.yaml"),
    from_run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder where `dpgen run` has worked on this param file: go on after its last "
            "whole iteration, with every label in it.",
        ),
    ] = None,
    code: Code = None,
    name: NewName = None,
) -> None:
    """Turn DP-GEN's param.json and machine.json into a campaign spec. Starts nothing.

    Every key is listed with what becomes of it. The campaign runs as DP-GEN would: lockstep, each
    job once and in order, a random selection, no audit. All else is yours to turn on:
    `repeat: true` of a stage, `--mode streaming`, `audit.per_round`.
    """
    if output.exists():
        raise SpecError(f"--output: {output}: exists; name another file")
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
    """Refuse what is no machine file, and say that workers here are told otherwise."""
    if machine is None:
        return
    if not is_param(read_document(param)):
        raise SpecError(f"{machine}: a machine file goes with DP-GEN's param.json, not {param}")
    say(console, said_of_machine(machine))


def said_of_machine(machine: Path) -> str:
    """What a run here makes of a machine file. Raises `SpecError` where it is none."""
    _machine(machine)
    return f"{machine}: workers run here as they are; dpstream import tells what becomes of it"


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
            f"from {param.name} of DP-GEN; runs as DP-GEN would, but for this:",
            *converted.differences,
        )
    )
    body = yaml.safe_dump(
        converted.document, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )
    try:
        output.write_text(head + body, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--output: {output}: cannot be written: {error.strerror}") from error


# ----------------------------------------------------------------------------------- what is said


def key_table(title: str, lines: Iterable[KeyLine]) -> Table:
    """Every key, and what became of it."""
    table = text_table("key", "value", "becomes", title=title, title_justify="left")
    for line in lines:
        words = line.words if line.fate == "mapped" else f"not used: {line.words}"
        table.add_row(Text(line.key), Text(line.value), Text(words))
    return table


def _started(workers: Sequence[WorkerCommand]) -> list[RenderableType]:
    """What a person does to have such workers."""
    found: list[RenderableType] = []
    for worker in workers:
        cores = "" if worker.cores is None else f"; {worker.cores} cores"
        does = f"; its command: {worker.command}" if worker.service == "labeler" else ""
        found.append(
            Text(f"{worker.service}: python -m dpstream.services.{worker.service}{cores}{does}")
        )
        found += [Text(f"    before it: {line}") for line in worker.before]
    return found


def _closing(converted: Converted, output: Path) -> list[str]:
    jobs = len(converted.document["stages"])
    return [
        *(f"not as in DP-GEN: {text}" for text in converted.differences),
        f"at most {converted.labels} labels: {jobs} jobs, each explored once",
        f"wrote {output}; next: dpstream validate {output}",
    ]
