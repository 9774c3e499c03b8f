"""A one-page structure generator: methane distorted within a random subgroup of its symmetry.

It offers the frames to a campaign, which labels the candidates among them.

    python generate.py --campaign methane [--frames 12] [--seed 1]

DPSTREAM_BROKER and DPSTREAM_STORE are the URLs of the deployment.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from ase import Atoms

from dpstream.generators.client import Generator
from dpstream.generators.table import HEADER, row

IDEAL = np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) * 0.63
"""Å; the carbon and its four hydrogens."""
C2, C2X = np.diag([-1.0, -1.0, 1.0]), np.diag([1.0, -1.0, -1.0])
C3 = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
MIRROR = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
S4 = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, -1]])
SUBGROUPS = {
    "C1": [],
    "C2": [C2],
    "Cs": [MIRROR],
    "C2v": [C2, MIRROR],
    "D2": [C2, C2X],
    "S4": [S4],
    "C3": [C3],
    "C3v": [C3, MIRROR],
}
"""Subgroups of the tetrahedron's symmetry, by operations that generate them."""
AMPLITUDE = (0.02, 0.15)
"""Å; standard deviation of a displacement before it is made symmetric."""


def group(generators: list[np.ndarray]) -> list[np.ndarray]:
    """All operations that the generators make."""
    found = [np.eye(3)]
    for operation in found:
        for generator in generators:
            product = operation @ generator
            if not any(np.allclose(product, known) for known in found):
                found.append(product)
    return found


def symmetric(displacement: np.ndarray, operations: list[np.ndarray]) -> np.ndarray:
    """The part of a displacement `(5, 3)` that every operation leaves as it is."""
    total = np.zeros_like(displacement)
    for operation in operations:
        images = IDEAL @ operation.T
        sites = np.linalg.norm(images[:, None] - IDEAL[None], axis=-1).argmin(axis=1)
        total[sites] += displacement @ operation.T
    return total / len(operations)


def generate(count: int, seed: int) -> list[Atoms]:
    rng, names = np.random.default_rng(seed), list(SUBGROUPS)
    made = []
    for _ in range(count):
        operations = group(SUBGROUPS[names[rng.integers(len(names))]])
        noise = rng.normal(0, rng.uniform(*AMPLITUDE), IDEAL.shape)
        made.append(Atoms("CH4", IDEAL + symmetric(noise, operations)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Offer distorted methane to a campaign.")
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    broker, store = os.environ["DPSTREAM_BROKER"], os.environ["DPSTREAM_STORE"]
    with Generator.connect(broker, store, wanted.campaign, "random-symmetry") as generator:
        correlation = generator.propose(generate(wanted.frames, wanted.seed))
        print(HEADER)
        for verdict in generator.verdicts_on(correlation, wanted.frames):
            print(row(verdict), flush=True)


if __name__ == "__main__":
    main()
