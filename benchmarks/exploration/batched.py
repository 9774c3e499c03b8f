"""`python -m benchmarks.exploration.batched MEMBER.pth…`: how fast the engine `batched` moves 1, 8
and 64 replicas, beside one trajectory of LAMMPS with the same members.

Needs the environment of PyTorch (DeePMD-kit with PyTorch, LAMMPS, TorchSim); other numbers of
replicas by `--replicas 1,256`, of atoms by `--atoms 256`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ase.build import bulk

from dpstream.services.explorer.batched.replica import Terms, initial_state
from dpstream.services.explorer.batched.runner import ENGINE as BATCHED
from dpstream.services.explorer.lammps import script as md_script
from dpstream.services.explorer.resources import ENGINE as LAMMPS
from dpstream.shared.atoms.frames import Frame, canonical, from_ase
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import Device
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.spec import Md
from dpstream.shared.values import Condition, Trust

OPEN = Trust(low=1e-9, high=1e9)
CONDITION = Condition(system="s", temperature=300.0)
MD = Md(timestep=0.001, every=10, stop_after=10**6)
SECONDS = 10.0
"""Length of a measurement."""


def crystal(type_map: Sequence[str], atoms: int) -> Frame:
    """Fcc with about so many atoms, the elements in turn."""
    side = round((atoms / 4) ** (1 / 3))
    found = bulk("Cu", cubic=True, a=3.9) * (side, side, side)
    found.symbols[:] = [type_map[n % len(type_map)] for n in range(len(found))]
    return canonical(from_ase(found)).frame


def batched(
    models: Sequence[Path], frame: Frame, replicas: int, device: Device | None = None
) -> float:
    """Atom-steps per second."""
    with private_folder(None) as folder:
        child = ChildProcess(BATCHED, folder / "engine", device=device, reads=models)
        for number in range(replicas):
            terms = Terms.under(
                MD,
                CONDITION,
                frame,
                models=tuple(map(str, models)),
                driver=number,
                trust=OPEN.model_dump(),
                pinned=False,
                seed=number,
            )
            state = folder / f"{number}.npz"
            state.write_bytes(initial_state(frame, MD, CONDITION.temperature, number).dumps())
            arguments = {"name": f"{number}", "terms": vars(terms), "state": str(state)}
            child.call("put", arguments)

        def run(checks: int) -> None:
            asked = {
                f"{n}": {"checks": checks, "streak": 0, "frames": f"{folder}/{n}-frames.npz"}
                for n in range(replicas)
            }
            while not child.call("advance", {"asked": asked}):
                asked = {}

        try:
            return speed(run, len(frame.species) * replicas)
        finally:
            child.kill()


def lammps(
    models: Sequence[Path], type_map: Sequence[str], frame: Frame, device: Device | None = None
) -> float:
    """Atom-steps per second of one trajectory."""
    with private_folder(None) as folder:
        child = ChildProcess(LAMMPS, folder / "engine", device=device, reads=models)
        data = folder / "start.data"
        data.write_text(md_script.data_file(frame, type_map, {}))
        pair = md_script.pair_commands(models, 0, type_map, MD.every, OPEN, frame)
        script = md_script.start_script(frame, data, MD, CONDITION, 7, pair)
        child.call("begin", {"script": vars(script)})
        common: dict[str, Any] = {
            "every": MD.every,
            "overlap": MD.overlap,
            "reach": None,
            "trust": OPEN.model_dump(),
            "streak": 0,
            "stop_after": MD.stop_after,
            "frames": f"{folder}/frames.npz",
        }
        try:
            return speed(
                lambda checks: child.call("advance", {**common, "checks": checks}),
                len(frame.species),
            )
        finally:
            child.kill()


def speed(run: Callable[[int], Any], atoms: int) -> float:
    """Atom-steps per second of `run(checks)`, after one check that is not counted."""
    run(1)
    started = time.monotonic()
    run(1)
    checks = max(1, round(SECONDS / (time.monotonic() - started)))
    started = time.monotonic()
    run(checks)
    return checks * MD.every * atoms / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--type-map", default="Au,Cu")
    parser.add_argument("--replicas", default="1,8,64")
    parser.add_argument("--atoms", type=int, default=108)
    options = parser.parse_args()
    models = [path.resolve() for path in options.models]
    type_map = options.type_map.split(",")
    frame = crystal(type_map, options.atoms)
    one = lammps(models, type_map, frame)
    print(f"{len(frame.species)} atoms, {len(models)} members, deviation every {MD.every} steps")
    print(f"LAMMPS, one trajectory: {one:,.0f} atom-steps/s", flush=True)
    found = {"lammps": one}
    for replicas in map(int, options.replicas.split(",")):
        many = batched(models, frame, replicas)
        found[f"batched-{replicas}"] = many
        text = f"batched, {replicas:3} replicas: {many:,.0f} atom-steps/s, {many / one:.2f} times"
        print(text, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
