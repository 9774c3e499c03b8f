"""Properties of the perfect crystal; relaxation also for molecules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dpstream.properties.basis import (
    Curve,
    PropertyResult,
    PropertySettings,
    PropertyValue,
    energy,
    like,
    relaxed,
    supercell,
)
from dpstream.shared.atoms.frames import Floats
from dpstream.shared.atoms.properties import (
    STRETCHES,
    constant_names,
    deformations,
    fit_birch_murnaghan,
    fit_stiffness,
)
from dpstream.shared.errors import Permanent

DISPLACEMENT = 0.01
"""Displacement for phonons, Å."""
MESH = (8, 8, 8)


def relaxation(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Energy of the relaxed structure, and the volume and cell of a crystal or the shortest and
    longest distance in a molecule."""
    count = len(atoms)
    values = [PropertyValue("energy", "eV/atom", energy(atoms) / count)]
    if atoms.pbc.all():
        values += [
            PropertyValue("volume", "Å³/atom", atoms.get_volume() / count),
            *(
                PropertyValue(name, "Å", x)
                for name, x in zip("abc", atoms.cell.lengths(), strict=True)
            ),
        ]
    elif count > 1:
        distances = atoms.get_all_distances()[np.triu_indices(count, 1)]
        values += [
            PropertyValue("shortest distance", "Å", float(distances.min())),
            PropertyValue("longest distance", "Å", float(distances.max())),
        ]
    return PropertyResult(tuple(values))


def equation_of_state(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Birch-Murnaghan fit to energies at scaled volumes with fixed fractional coordinates."""
    volume, count = atoms.get_volume(), len(atoms)
    volumes = volume * STRETCHES
    energies = np.array([energy(_scaled(atoms, float(np.cbrt(s)))) for s in STRETCHES])
    try:
        rest = fit_birch_murnaghan(volumes, energies)
    except ValueError as error:
        raise Permanent(str(error)) from error
    points = tuple(zip(volumes / count, energies / count, strict=True))
    return PropertyResult(
        (
            PropertyValue("V₀", "Å³/atom", rest.volume / count),
            PropertyValue("E₀", "eV/atom", rest.energy / count),
            PropertyValue("B", "GPa", rest.bulk),
        ),
        Curve("volume (Å³/atom)", "energy (eV/atom)", points),
    )


def _scaled(atoms: Any, factor: float) -> Any:
    copy = like(atoms, atoms.calc)
    copy.set_cell(copy.cell[:] * factor, scale_atoms=True)
    return copy


# ------------------------------------------------------------------------------ elastic constants


def elastic(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Elastic constants C_ij from stresses at small strains with relaxed ions, and their
    Voigt-Reuss-Hill averages. Cartesian axes are those of the input structure."""
    constants = stiffness(atoms, how)
    named = [PropertyValue(name, "GPa", float(constants[i, j])) for name, i, j in constant_names()]
    return PropertyResult((*named, *_averages(constants)))


def stiffness(atoms: Any, how: PropertySettings) -> Floats:
    """C `(6, 6)` in GPa, Voigt order xx yy zz yz xz xy, engineering shear."""
    sides = [_relaxed_in(atoms, atoms.cell[:] @ d, how) for d in deformations()]
    return fit_stiffness([c.cell[:] for c in sides], [c.get_stress(voigt=False) for c in sides])


def _relaxed_in(atoms: Any, cell: Floats, how: PropertySettings) -> Any:
    copy = like(atoms, atoms.calc)
    copy.set_cell(cell, scale_atoms=True)
    return relaxed(copy, how)


def _averages(c: Floats) -> Iterator[PropertyValue]:
    """R. Hill, Proc. Phys. Soc. A 65, 349 (1952)."""
    try:
        s = np.linalg.inv(c)
    except np.linalg.LinAlgError as error:
        raise Permanent(f"elastic constants are singular: {error}") from error
    diagonal, off = np.trace(c[:3, :3]), c[0, 1] + c[0, 2] + c[1, 2]
    soft, soft_off = np.trace(s[:3, :3]), s[0, 1] + s[0, 2] + s[1, 2]
    bulk = ((diagonal + 2 * off) / 9 + 1 / (soft + 2 * soft_off)) / 2
    voigt = (diagonal - off + 3 * np.trace(c[3:, 3:])) / 15
    reuss = 15 / (4 * soft - 4 * soft_off + 3 * np.trace(s[3:, 3:]))
    shear = (voigt + reuss) / 2
    yield PropertyValue("bulk modulus", "GPa", float(bulk))
    yield PropertyValue("shear modulus", "GPa", float(shear))
    poisson = (3 * bulk - 2 * shear) / (6 * bulk + 2 * shear)
    yield PropertyValue("Poisson's ratio", "", float(poisson))


# ------------------------------------------------------------------------------ phonons


def phonons(atoms: Any, how: PropertySettings) -> PropertyResult:
    """Frequencies on a mesh from finite displacements in a supercell, with phonopy; imaginary
    frequencies are negative (A. Togo, I. Tanaka, Scr. Mater. 108, 1 (2015))."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    unit = PhonopyAtoms(atoms.get_chemical_symbols(), cell=atoms.cell[:], positions=atoms.positions)
    repeat = np.rint(supercell(atoms, how.size).cell.lengths() / atoms.cell.lengths())
    phonon = Phonopy(unit, np.diag(repeat.astype(int)), primitive_matrix="P", log_level=0)
    phonon.generate_displacements(distance=DISPLACEMENT)
    phonon.forces = [_forces(cell, atoms.calc) for cell in phonon.supercells_with_displacements]
    phonon.produce_force_constants()
    phonon.run_mesh(MESH, is_gamma_center=True)
    frequencies, weights = phonon.mesh.frequencies, phonon.mesh.weights
    mean = float((frequencies.mean(axis=1) * weights).sum() / weights.sum())
    phonon.run_total_dos()
    points = zip(phonon.total_dos.frequency_points, phonon.total_dos.dos, strict=True)
    return PropertyResult(
        (
            PropertyValue("lowest frequency", "THz", float(frequencies.min())),
            PropertyValue("mean frequency", "THz", mean),
            PropertyValue("highest frequency", "THz", float(frequencies.max())),
        ),
        Curve(
            "frequency (THz)", "density of states", tuple((float(x), float(y)) for x, y in points)
        ),
    )


def _forces(cell: Any, calculator: Any) -> Floats:
    from ase import Atoms

    atoms = Atoms(cell.symbols, cell=cell.cell, positions=cell.positions, pbc=True)
    return np.asarray(like(atoms, calculator).get_forces(), dtype=np.float64)
