"""`dpstream import`: converts DP-GEN's files to a campaign spec.

`dpstream.dpgen` does the conversion; this module prints a table that accounts for every key and
writes the spec and, from `machine.json`, the fleet file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.table import Table
from rich.text import Text

from dpstream.dpgen.key_table import KeyLine, is_param, read
from dpstream.dpgen.load import convert_file, spec_of
from dpstream.dpgen.machines.here import MachineFile, read_here
from dpstream.dpgen.machines.machine import Machine, read_machine
from dpstream.dpgen.machines.pools import Labels, Pool, fleet_text, read_bundle, read_pools
from dpstream.dpgen.param import Converted
from dpstream.services.coordinator.fleet.pools import FleetFile
from dpstream.shared.errors import SpecError, errors_at, write_errors
from dpstream.shared.spec.errors import read_document, validated
from dpstream.terminal.console import console, print_line
from dpstream.terminal.tables import text_table


def import_(
    param: Annotated[
        Path, typer.Argument(metavar="PARAM", help="DP-GEN's param.json (JSON or YAML).")
    ],
    machine: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MACHINE]",
            help="DP-GEN's machine file; --fleet converts it to pools of workers.",
        ),
    ] = None,
    fleet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The fleet file to write: a pool for each machine of MACHINE."
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
    amend: Annotated[
        bool,
        typer.Option(
            "--amend",
            help="Replace the spec of an earlier import, e.g. by one with more model_devi_jobs; "
            "its campaign keeps its name.",
        ),
    ] = False,
) -> None:
    """Convert DP-GEN's param.json to a campaign spec, and machine.json to a fleet file.

    Starts nothing.

    Prints what each key becomes. The campaign runs as in DP-GEN: lockstep, each job once and in
    order, uniform selection, no audit. To use more of dpstream, set `repeat: true` in a stage,
    `mode: streaming` or `audit.per_round`.
    """
    name = _name_to_keep(output, name) if amend else name
    for option, path in (("--output", None if amend else output), ("--fleet", fleet)):
        if path is not None and path.exists():
            instead = " (--amend replaces it)" if path == output else ""
            raise SpecError(f"{option}: {path}: already exists; give another file name{instead}")
    if fleet is not None and machine is None:
        raise SpecError("--fleet: give DP-GEN's machine file after the param file")
    machines, lines = _machine(machine)
    converted = convert_file(param, output.parent, name, code, from_run, machines)
    section = converted.document["labels"]
    with errors_at(f"{machine}", SpecError):
        bundle = read_bundle(machines)
        pools, notes = read_pools(machines, Labels(section["code"], is_own=code is None))
    if bundle is not None:
        section["bundle"] = bundle
    spec_of(converted, param)
    notes += [f"{pool.machine.where}: {note}" for pool in pools for note in pool.notes]
    if machine is not None:
        notes.append(_write_fleet(converted.document["name"], pools, machine, fleet))
    _write(converted, param, output)
    console.print(key_table(f"{param}", converted.lines))
    if machine is not None:
        console.print(key_table(f"{machine}", lines))
    for text in (*notes, *_closing(converted, output, amend)):
        print_line(console, text)


def _name_to_keep(output: Path, name: str | None) -> str:
    """The name of the campaign whose spec is replaced. Raises SpecError if there is none."""
    document = read_document(output, "dpstream import PARAM")
    known = document.get("name")
    if not isinstance(known, str) or is_param(document):
        raise SpecError(f"--output: {output}: is not the spec of a campaign; leave out --amend")
    if name not in (None, known):
        raise SpecError(f"--name: {name}: {output} is the spec of {known}; leave out --name")
    return known


def read_machine_file(param: Path, machine: Path | None) -> MachineFile | None:
    """The machine file that was given with a param file. Raises `SpecError` if it was given with
    another file, or cannot be read."""
    if machine is None:
        return None
    if not is_param(read_document(param)):
        raise SpecError(
            f"{machine}: a machine file is allowed only with DP-GEN's param.json, not with {param}"
        )
    return read_here(machine)


def _machine(path: Path | None) -> tuple[list[Machine], list[KeyLine]]:
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


def _write_fleet(deployment: str, pools: Sequence[Pool], machine: Path, target: Path | None) -> str:
    """Write the fleet file, if it was requested and there is a pool; what was done."""
    if not pools:
        return f"{machine}: no pool of workers" + (f"; {target} is not written" if target else "")
    if target is None:
        return f"{machine}: {len(pools)} pools of workers; --fleet FILE writes them"
    text = fleet_text(deployment, pools, machine.name)
    validated(FleetFile, yaml.safe_load(text), f"{machine}: as a fleet file: ")
    with write_errors(f"--fleet: {target}"):
        target.write_text(text, encoding="utf-8")
    return f"wrote {target} with {len(pools)} pools; next: dpstream fleet check {target}"


# --------------------------------------------------------------------------------------- output


def key_table(title: str, lines: Iterable[KeyLine]) -> Table:
    """A table of every key with its value and what it becomes."""
    table = text_table("key", "value", "becomes", title=title, title_justify="left")
    for line in lines:
        words = line.words if line.fate == "mapped" else f"not used: {line.words}"
        table.add_row(Text(line.key), Text(line.value), Text(words))
    return table


def _closing(converted: Converted, output: Path, amend: bool) -> list[str]:
    jobs = len(converted.document["stages"])
    bundle = converted.document["labels"].get("bundle", 1)
    serial = f"labels.bundle: {bundle}: a label task computes {bundle} frames one after another"
    return [
        *(f"differs from DP-GEN: {text}" for text in converted.differences),
        *([f"{serial}; with fewer, more workers compute at once"] if bundle > 1 else []),
        f"at most {converted.labels} labels: {jobs} jobs, each explored once",
        f"wrote {output}; next: {_next(converted.document['name'], output, amend)}",
    ]


def _next(campaign: str, output: Path, amend: bool) -> str:
    if not amend:
        return f"dpstream validate {output}"
    return f"dpstream amend {campaign} {output}, or dpstream run {output} --amend"
