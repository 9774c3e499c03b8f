"""`python -m benchmarks.gpu [PART…] [--check] [--seconds S] [--json FILE] [--workdir DIR]`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.gpu import checks, members, trainings
from benchmarks.gpu.campaign import write_campaign
from benchmarks.gpu.table import CPU, Row, table
from dpstream.shared.runtime.device import Device, chosen, gpus
from dpstream.shared.runtime.scratch import private_folder

PARTS = ("slots", "batches", "judge", "explore", "campaign")


def measure(part: str, folder: Path, seconds: float) -> Iterator[Row]:
    if part == "slots":
        yield from trainings.slots(folder, seconds)
    elif part == "batches":
        yield from trainings.batches(folder, seconds)
    elif part == "campaign":
        yield campaign(folder)
    else:
        yield from _with_members(part, folder)


def _with_members(part: str, folder: Path) -> Iterator[Row]:
    models = members.train(folder, 4, chosen("auto"))
    for device in _devices():
        name = CPU if device.gpu is None else device.gpu.name
        if part == "judge":
            yield from members.judge(folder, models, device, name)
        else:
            yield from members.explore(models, device, name)


def _devices() -> Sequence[Device]:
    return [chosen("cpu"), *([chosen("cuda")] if gpus() else [])]


def campaign(folder: Path) -> Row:
    """A whole campaign of a CuAu alloy; its report names the device."""
    spec = write_campaign(folder)
    command = [sys.executable, "-m", "dpstream", "run", str(spec), "--root", str(folder / "root")]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:], flush=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    (device,) = _devices()[-1:]
    name = CPU if device.gpu is None else device.gpu.name
    return Row("campaign of the alloy, to convergence", name, time.monotonic() - began, "s")


def main() -> int:
    options = _parser().parse_args()
    with private_folder(options.workdir) as scratch:
        if options.check:
            return 1 if checks.run(scratch) else 0
        rows: list[Row] = []
        try:
            for part in options.parts or PARTS:
                folder = scratch / part
                folder.mkdir()
                for row in measure(part, folder, options.seconds):
                    print(f"{row.what} [{row.device}]: {row.value:,.3g} {row.unit}", flush=True)
                    rows.append(row)
        finally:  # also after an interruption
            Console(width=140).print(table(rows))
            if options.json is not None:
                options.json.write_text(json.dumps([row.as_json() for row in rows], indent=1))
    return 0


def _part(name: str) -> str:
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"{name}: none of {', '.join(PARTS)}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", type=_part, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--check", action="store_true", help="only what can fail on a GPU")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each table of trainings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="where the scratch folder is")
    return parser


if __name__ == "__main__":
    sys.exit(main())
