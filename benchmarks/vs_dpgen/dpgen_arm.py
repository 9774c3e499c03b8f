"""Runs `dpgen run` in its own environment, with generated input files, and collects its outcome."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.vs_dpgen import dpgen_files, dpgen_log
from benchmarks.vs_dpgen.outcome import Outcome
from benchmarks.vs_dpgen.size import Size
from dpstream.shared.runtime.child_process import PINNED
from dpstream.shared.spec import Training

PACKAGES = ("dpgen==0.14.0", "deepmd-kit[cpu,lmp]==3.2.0")
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")
WRAPPER = """#!/bin/bash
started=$EPOCHREALTIME
"$@"
status=$?
printf '%s\\t%s\\t%s\\n' "$started" "$EPOCHREALTIME" "$*" >> '{log}'
exit $status
"""
"""Wrapper around every command that records its start and end, and starts no other process."""


def install(venv: Path, pyscf: str) -> None:
    """Installs DP-GEN in an environment of its own, with the versions of DeePMD-kit and PySCF of
    the benchmark."""
    if (venv / "done").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", *PACKAGES, f"pyscf=={pyscf}"]
    subprocess.run(pip, check=True)
    (venv / "done").touch()


def environment(venv: Path) -> dict[str, str]:
    """Environment variables: one thread per process, and the programs of `venv` first."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = f"{venv / 'bin'}:{kept.get('PATH', '/usr/bin:/bin')}"
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    return {**kept, **dict.fromkeys(PINNED, "1"), **quiet, "PATH": path}


def run(size: Size, training: Training, inputs: Path, folder: Path, venv: Path) -> Outcome:
    """Runs from an empty folder to the committee trained on all labels, with which `dpgen run`
    ends. Raises RuntimeError if it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    processes = folder / "processes.tsv"
    _write_files(size, training, inputs, folder, venv, processes)
    started = time.time()
    with (folder / "output").open("w") as output:
        done = subprocess.run(
            [str(venv / "bin" / "dpgen"), "run", "param.json", "machine.json"],
            cwd=folder,
            env=environment(venv),
            stdout=output,
            stderr=output,
        )
    ended = time.time()
    if done.returncode:
        raise RuntimeError(f"dpgen ended with status {done.returncode}; see {folder / 'output'}")
    ran = dpgen_log.processes(processes.read_text())
    last = folder / f"iter.{len(size.temperatures):06d}" / "00.train"
    return Outcome(
        arm="dpgen",
        started=started,
        ready=ended,
        ended=ended,
        labels=len(list(folder.glob("iter.*/02.fp/task.*/label/set.000"))),
        models=tuple(str(path) for path in sorted(last.glob("graph.*.pb"))),
        busy=tuple((p.started, p.ended) for p in ran),
        processes=dpgen_log.by_kind(ran),
        polling=dpgen_log.polling(ran, dpgen_log.detected((folder / "output").read_text())),
    )


def _write_files(
    size: Size, training: Training, inputs: Path, folder: Path, venv: Path, processes: Path
) -> None:
    wrapper = folder / "timed"
    wrapper.write_text(WRAPPER.replace("{log}", str(processes)))
    wrapper.chmod(0o755)
    script = Path(__file__).with_name("pyscf_fp.py")
    bin_folder = venv / "bin"
    commands: Mapping[str, str] = {
        "train": f"{wrapper} {bin_folder / 'dp'}",
        "model_devi": f"{wrapper} {bin_folder / 'lmp'}",
        "fp": f"{wrapper} {bin_folder / 'python'} {script}",
    }
    documents = {
        "param.json": dpgen_files.param(size, training, inputs.resolve()),
        "machine.json": dpgen_files.machine(size, commands),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1))
