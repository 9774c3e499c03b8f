"""A structure generator in a page: random molecules of CH₄ with the symmetry of a random point
group, offered to a campaign; those that the committee does not know are labelled.

    python generate.py --campaign methane [--frames 12] [--seed 1]

DPSTREAM_BROKER and DPSTREAM_STORE say where the deployment is (`source DIR/env` after
`dpstream up`).
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from ase import Atoms

from dpstream.generator import Generator
from dpstream.journal import warnings_aloud
from dpstream.propose import HEADER, OPEN, row

GROUPS = {
    "C1": [],
    "C2": [np.diag([-1.0, -1.0, 1.0])],
    "Cs": [np.diag([1.0, 1.0, -1.0])],
    "C2v": [np.diag([-1.0, 1.0, 1.0]), np.diag([1.0, -1.0, 1.0])],
    "D2": [np.diag([-1.0, -1.0, 1.0]), np.diag([1.0, -1.0, -1.0])],
    "S4": [np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])],
}
"""Point groups by their generators, about the carbon atom at the origin."""
SHORTEST, BOND = 1.2, (0.95, 1.35)
"""Å: between hydrogens, and from the carbon."""


def group(generators: list[np.ndarray]) -> list[np.ndarray]:
    """All operations that the generators make."""
    found = [np.eye(3)]
    for operation in found:
        for generator in generators:
            product = operation @ generator
            if not any(np.allclose(product, known) for known in found):
                found.append(product)
    return found


def methane(rng: np.random.Generator, operations: list[np.ndarray]) -> Atoms | None:
    """Four hydrogens around a carbon, orbits of random points; None where they do not fit."""
    hydrogens: list[np.ndarray] = []
    while len(hydrogens) < 4:
        point = rng.normal(size=3)
        point *= rng.uniform(*BOND) / np.linalg.norm(point)
        orbit = [operation @ point for operation in operations]
        hydrogens += orbit
    atoms = Atoms("C" + "H" * len(hydrogens), [np.zeros(3), *hydrogens])
    distances = atoms.get_all_distances()[1:, 1:] + 9 * np.eye(len(hydrogens))
    return atoms if len(hydrogens) == 4 and distances.min() > SHORTEST else None


def generate(count: int, seed: int) -> list[Atoms]:
    rng, names = np.random.default_rng(seed), list(GROUPS)
    made: list[Atoms] = []
    while len(made) < count:
        atoms = methane(rng, group(GROUPS[names[rng.integers(len(names))]]))
        if atoms is not None:
            made.append(atoms)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Offer random symmetric methane to a campaign.")
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    broker, store = os.environ["DPSTREAM_BROKER"], os.environ["DPSTREAM_STORE"]
    with Generator.connect(broker, store, wanted.campaign, "random-symmetry") as generator:
        correlation = generator.propose(generate(wanted.frames, wanted.seed))
        waiting = set(range(wanted.frames))
        print(HEADER)
        for verdict in generator.verdicts():
            if verdict.correlation != correlation:
                continue
            print(row(verdict), flush=True)
            if verdict.verdict not in OPEN:
                waiting.discard(verdict.index)
            if not waiting:
                break


if __name__ == "__main__":
    with warnings_aloud():
        main()
