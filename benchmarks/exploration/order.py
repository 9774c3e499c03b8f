"""Compares swap Monte Carlo with plain dynamics in ordered CuAu (L1_0). Swaps remove the chemical
order; diffusion is too slow to do so in this time.

The order parameter is that of Warren and Cowley for the first shell, α = 1 − P(Au beside Cu) /
c(Au): −1/3 in L1_0, zero in a random alloy (J. M. Cowley, Phys. Rev. 77, 669, 1950).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list

from benchmarks.exploration.committee import Arrays, engine, labelled, train, trajectory
from benchmarks.exploration.figure import saved
from dpstream.services.explorer.engines.swap_mc import swap_commands
from dpstream.shared.atoms.builders import perturbed
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import Floats, Frame, canonical, from_ase, to_ase
from dpstream.shared.spec import Md
from dpstream.shared.spec.engines import SwapMc
from dpstream.shared.values import Condition

LATTICE = 3.95
"""Å, near that of EMT's CuAu."""
TEMPERATURE = 1000.0
SWAPS = SwapMc(kind="swap-mc", swaps=(("Cu", "Au"),), every=10, attempts=2)
DYNAMICS = Md(steps=3000, every=20, timestep=0.002)
FRAMES = 40


def alloy(gold: Floats) -> Frame:
    """32 atoms of fcc, gold where `gold` is true."""
    atoms = bulk("Cu", cubic=True, a=LATTICE) * (2, 2, 2)
    atoms.symbols[np.flatnonzero(gold)] = "Au"
    return canonical(from_ase(atoms)).frame


def ordered() -> Frame:
    heights = (bulk("Cu", cubic=True, a=LATTICE) * (2, 2, 2)).positions[:, 2]
    return alloy(np.rint(2 * heights / LATTICE).astype(int) % 2 == 0)


def training_data() -> list[Labelled]:
    """Ordered and disordered cells, strained and rattled, labelled with effective medium theory."""
    rng = np.random.default_rng(1)
    frames = [ordered()] * (FRAMES // 2)
    frames += [alloy(rng.permutation(32) < 16) for _ in range(FRAMES // 2)]
    return [labelled(perturbed(frame, 0.3, 0.03, rng), EMT()) for frame in frames]


def warren_cowley(frame: Frame) -> float:
    species = np.array(frame.species)
    first, second = neighbor_list("ij", to_ase(frame), 1.2 * LATTICE / np.sqrt(2))
    unlike = species[second[species[first] == "Cu"]] == "Au"
    return float(1 - unlike.mean() / np.mean(species == "Au"))


def order(found: Arrays) -> Floats:
    names = np.array(["Au", "Cu"])
    rows = zip(found["types"], found["positions"], found["cells"], strict=True)
    frames = [Frame(tuple(names[types - 1]), positions, cell) for types, positions, cell in rows]
    return np.array([warren_cowley(frame) for frame in frames])


def main(work: Path, docs: Path) -> None:
    folder = work / "order"
    models = train(training_data(), ["Au", "Cu"], folder, members=3, steps=2000)
    condition = Condition(system="s", temperature=TEMPERATURE)

    def swaps(type_map: list[str]) -> list[str]:
        return swap_commands(SWAPS, tuple(type_map), condition, 7)

    curves = {}
    with engine("dpstream.services.explorer.lammps.child", folder) as child:
        for name, added in (("MD", lambda _: []), ("MD + swaps", swaps)):
            print(name)
            found = trajectory(
                child, folder / name, ordered(), models, TEMPERATURE, DYNAMICS, added
            )
            curves[name] = (found["steps"] * DYNAMICS.timestep, order(found), found["devi_f"])
    print(f"start: α = {warren_cowley(ordered()):.3f}")
    for name, (_, alpha, devi) in curves.items():
        half = len(alpha) // 2
        print(
            f"{name}: α = {alpha[half:].mean():.3f} ± {alpha[half:].std():.3f} (second half); "
            f"largest deviation {devi.max():.3f} eV/Å"
        )
    saved(
        docs / "swap-mc-order.png",
        f"Au16Cu16 from L1$_0$, {TEMPERATURE:g} K",
        ("Warren–Cowley α, first shell", "force deviation (eV/Å)"),
        curves,
    )
