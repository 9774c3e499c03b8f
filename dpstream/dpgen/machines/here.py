"""What a run on this machine takes from DP-GEN's machine file: the command that computes labels.

A file or a key that such a run does not use never stops it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpstream.dpgen.fp_style import Json
from dpstream.dpgen.key_table import read
from dpstream.dpgen.machines.machine import Machine, read_machine
from dpstream.dpgen.machines.pools import Labels, read_pools
from dpstream.services.labeler.codes.custom import UNVERSIONED
from dpstream.services.labeler.codes.inside import check_inside
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.services.labeler.programs import LAUNCHERS
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.inline_files import text_of

COMMANDS = "DPSTREAM_LABELER_COMMANDS"
FORWARDED = "fp.user_forward_files"
BY_PATH = (
    "remove it from user_forward_files, put it on the machine of each labeler, and name it in "
    "fp.command by its full path"
)
UNSHARED = (
    "labels.version: DP-GEN's files state none for a custom program, so its labels are not shared "
    "with other campaigns; state one in the imported spec to share them"
)


@dataclass(frozen=True)
class MachineFile:
    """A machine file; `problem`: why its contents cannot be used."""

    path: Path
    machines: tuple[Machine, ...] = ()
    problem: str = ""


def read_here(path: Path) -> MachineFile:
    """Read a machine file for a run on this machine. Raises `SpecError` only if the file cannot be
    read at all."""
    values = read(path)
    try:
        machines, _ = read_machine(values)
    except SpecError as error:
        return MachineFile(path, problem=str(error))
    return MachineFile(path, tuple(machines))


def adopt(machine: MachineFile, labels: Labels) -> str:
    """Use the command of `fp` for the labels of this process, if the file has one that starts here
    and the environment has none; what was done, for the user."""
    command, reason = _command_here(machine.machines, labels)
    if command is None:
        why = machine.problem or reason
        unused = f"{machine.path}: not used by workers on this machine"
        return f"{unused}{f' ({why})' if why else ''}; dpstream import explains its keys"
    own = os.environ.get(COMMANDS, "").strip().rstrip(";")
    os.environ[COMMANDS] = f"{own}; {command}" if own else command
    return (
        f"{machine.path}: this machine labels with the command of fp: {command}; nothing else of "
        "the file is used"
    )


def _command_here(machines: Sequence[Machine], labels: Labels) -> tuple[str | None, str]:
    """`code=command` for this machine, or None and a reason."""
    fp = next((machine for machine in machines if machine.part == "fp"), None)
    if fp is None or labels.code in machine_settings().labeler_commands:
        return None, ""
    try:
        pools, _ = read_pools([fp], labels)
    except SpecError as error:
        return None, str(error)
    local = [pool for pool in pools if pool.settings["engine"] == "process"]
    command = local[0].settings.get("envs", {}).get(COMMANDS) if local else None
    if command is None:
        return None, ""
    program = _not_here(shlex.split(command.partition("=")[2]))
    if program is not None:
        return None, f"fp.command: {program}: no such program on this machine"
    return str(command), ""


def _not_here(words: Sequence[str]) -> str | None:
    """What of a command is not installed: its program or, if that is a launcher such as mpirun,
    all that it could start; None if it is."""
    program, *rest = words
    if shutil.which(program) is None:
        return program
    started = [word for word in rest if not word.startswith("-") and not word.isdigit()]
    is_launcher = os.path.basename(program) in LAUNCHERS
    return " ".join(started) if is_launcher and not any(map(shutil.which, started)) else None


# --------------------------------------------------------------------------------- fp_style custom


def with_program(
    document: Json, machines: Sequence[Machine], folder: Path, place: Callable[[str], str]
) -> tuple[Json, list[str]]:
    """The `document` of a campaign with fp_style custom, with a version and the files of
    user_forward_files, and notes for the user. Others are returned unchanged.

    DP-GEN's files state no version of the program: a digest of the campaign's name and the command
    line stands in. The files' texts are part of the recipe. `folder`: that of the param file.
    """
    labels = document["labels"]
    if labels["code"] != "custom" or "settings" not in labels:
        return document, []
    fp = next((machine for machine in machines if machine.part == "fp"), None)
    files, notes = _files(() if fp is None else fp.files, folder, place)
    settings = labels["settings"] | ({"files": files} if files else {})
    command = (None if fp is None else fp.command) or machine_settings().labeler_commands.get(
        settings["program"], ""
    )
    digest = hashlib.sha256(f"{document['name']}\n{command}".encode()).hexdigest()[:12]
    version = f"{UNVERSIONED} {digest}"
    own = {**labels, "settings": settings, "version": version}
    notes.append(UNSHARED)
    return {**document, "labels": own}, notes


def _check(name: str, text: str) -> None:
    """Raises `SpecError`, with what to do, for a text that labelers refuse."""
    try:
        check_inside({name: text})
    except ValueError as error:
        raise SpecError(f"{FORWARDED}: {error}; {BY_PATH}") from error


def _files(
    names: Sequence[str], folder: Path, place: Callable[[str], str]
) -> tuple[Json, list[str]]:
    """The files for labels.settings.files, and notes on those that are no text. Raises `SpecError`
    for a text that labelers refuse."""
    files: Json = {}
    notes = []
    for name in names:
        try:
            text = text_of(folder / name, FORWARDED)
        except SpecError as error:
            notes.append(f"{error}; {BY_PATH}")
            continue
        _check(Path(name).name, text)
        files[Path(name).name] = {"file": place(name)}
    return files, notes
