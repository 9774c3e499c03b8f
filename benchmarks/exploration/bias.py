"""Compares metadynamics on one C–H distance of methane with plain dynamics: same start,
temperature, number of steps and committee, which was trained on small displacements only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.build import molecule

from benchmarks.exploration.committee import Arrays, engine, labelled, train, trajectory
from benchmarks.exploration.figure import saved
from dpstream.services.explorer.engines.bias import colvars_input
from dpstream.shared.atoms.builders import perturbed
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import Floats, canonical, from_ase
from dpstream.shared.spec import Md
from dpstream.shared.spec.engines import Colvars

METHANE = canonical(from_ase(molecule("CH4"))).frame
TEMPERATURE = 300.0
DYNAMICS = Md(steps=6000, every=10, timestep=0.0005)
BIAS = Colvars.model_validate(
    {
        "kind": "colvars",
        "variables": [
            {
                "kind": "distance",
                "groups": [["C1"], ["H1"]],
                "width": 0.05,
                "upper": 2.0,
                "wall": 50.0,
            }
        ],
        "metadynamics": {"height": 0.1, "every": 40},
    }
)


def training_data() -> list[Labelled]:
    from tblite.ase import TBLite  # deferred: prints on import

    rng = np.random.default_rng(1)
    frames = [perturbed(METHANE, 0.25, 0.0, rng) for _ in range(60)]
    return [labelled(frame, TBLite(method="GFN2-xTB", verbosity=0)) for frame in frames]


def bond(found: Arrays) -> Floats:
    positions = found["positions"]
    return np.linalg.norm(positions[:, 1] - positions[:, 0], axis=1)


def main(work: Path, docs: Path) -> None:
    folder = work / "bias"
    models = train(training_data(), ["C", "H"], folder, members=4, steps=2000)
    text = folder / "bias.in"
    text.write_text(colvars_input(BIAS, METHANE.species))

    def colvars(_: list[str]) -> list[str]:
        return [f'fix bias all colvars "{text}" output "{folder}/bias" tstat motion']

    curves = {}
    with engine("dpstream.services.explorer.lammps.child", folder) as child:
        for name, added in (("MD", lambda _: []), ("metadynamics", colvars)):
            print(name)
            found = trajectory(child, folder / name, METHANE, models, TEMPERATURE, DYNAMICS, added)
            curves[name] = (found["steps"] * DYNAMICS.timestep, bond(found), found["devi_f"])
    for name, (_, distance, devi) in curves.items():
        print(f"{name}: C–H up to {distance.max():.2f} Å, largest deviation {devi.max():.3f} eV/Å")
    ratio = curves["metadynamics"][2].max() / curves["MD"][2].max()
    print(f"largest deviation, metadynamics over MD: {ratio:.1f}")
    saved(
        docs / "metadynamics-deviation.png",
        f"CH$_4$, {TEMPERATURE:g} K, hills on one C–H distance",
        ("C–H distance (Å)", "force deviation (eV/Å)"),
        curves,
    )
