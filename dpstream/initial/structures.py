"""Builds the structures of initial data: pure functions of parameters and relaxed cells.

Units: Å.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from dpstream.initial.params import InitBulk, InitParams, InitSurf
from dpstream.inputs.read_structures import read_structures
from dpstream.shared.atoms.builders import perturbed_apart, scaled, slab, supercell
from dpstream.shared.atoms.frames import Frame, as_frame, canonical, from_ase, to_ase
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.values import stable_seed


def unit_cell(params: InitParams, folder: Path) -> Frame:
    """The crystal that the parameters describe; paths are relative to `folder`. Raises
    `SpecError`."""
    if params.from_poscar and params.from_poscar_path is not None:
        path = folder / params.from_poscar_path
        with errors_at("from_poscar_path", SpecError, ValueError):
            first, *more = read_structures(path)
            if more:
                raise SpecError(f"{path}: has {len(more) + 1} structures; give a file with one")
            return canonical(as_frame(first, str(path))).frame
    from ase.build import bulk  # deferred: slow to import

    cubic = params.cell_type != "hcp"
    with errors_at("elements, cell_type", KeyError, ValueError, RuntimeError):
        atoms = bulk(params.elements[0], params.cell_type, a=params.latt, cubic=cubic)
    return canonical(as_frame(atoms, "cell_type")).frame


def bulk_cell(params: InitBulk, folder: Path) -> Frame:
    """The supercell of the crystal, or the molecule itself."""
    unit = unit_cell(params, folder)
    if unit.cell is None:
        if params.super_cell != (1, 1, 1):
            raise SpecError("super_cell: a molecule has no cell to repeat")
        return unit
    return supercell(unit, params.super_cell)


# ------------------------------------------------------------------------------ surfaces


def surface_cells(params: InitSurf, folder: Path) -> dict[str, Frame]:
    """One slab per set of Miller indices, with the smallest vacuum; keys such as `111`."""
    unit = unit_cell(params, folder)
    if unit.cell is None:
        raise SpecError("from_poscar_path: the structure has no cell; a surface requires a crystal")
    numbers = [atomic_numbers[symbol] for symbol in unit.species]
    vacuum = params.vacuum_min or 2 * float(covalent_radii[numbers].max())
    a, b, _ = params.super_cell
    cells = {}
    for miller in params.millers:
        if not any(miller):
            raise SpecError("millers: 0 0 0 is not a plane")
        thickness = params.z_min if params.layer_numb is None else None
        cut = slab(unit, miller, vacuum, layers=params.layer_numb, thickness=thickness)
        cells["".join(map(str, miller))] = supercell(cut, (a, b, 1))
    return cells


def gaps(params: InitSurf) -> list[float]:
    """Additional vacuum, Å: fine steps up to `mid_point`, coarse steps beyond."""
    if len(params.vacuum_resol) == 1:
        step = params.vacuum_resol[0]
        return [float(x) for x in np.arange(step, params.vacuum_max, step)]
    assert params.mid_point is not None
    if params.vacuum_resol:
        fine, coarse = params.vacuum_resol
        head = np.arange(fine, params.mid_point, fine)
        tail = np.arange(params.mid_point, params.vacuum_max, coarse)
    else:
        assert params.vacuum_numb is not None
        assert params.head_ratio is not None
        count = int(params.vacuum_numb * params.head_ratio)
        head = np.linspace(0, params.mid_point, count)
        tail = np.linspace(params.mid_point, params.vacuum_max, params.vacuum_numb - count + 1)
    return [float(x) for x in np.unique([*head, *tail])]


def widened(frame: Frame, gap: float) -> Frame:
    """The slab with `gap` Å more vacuum along its third cell vector, centred in the cell."""
    atoms = to_ase(frame)
    lengths = atoms.cell.lengths()
    atoms.set_cell(atoms.cell[:] * np.array([[1.0], [1.0], [1.0 + gap / lengths[2]]]))
    atoms.positions[:, 2] += atoms.cell[2, 2] / 2 - atoms.positions[:, 2].mean()
    return canonical(from_ase(atoms)).frame


# ------------------------------------------------------------------------------ scaled, perturbed


def variants(
    frame: Frame, params: InitParams, shortest: float, *name: object
) -> Iterator[tuple[str, Frame]]:
    """Yield each scaled structure, unperturbed and perturbed, with a name; no atoms are closer
    than `shortest` Å. `name` seeds the perturbations."""
    for scale in params.scale:
        cell = scaled(frame, scale)
        yield f"scale {scale:g}", cell
        for number in range(params.pert_numb):
            rng = np.random.default_rng(stable_seed("init", *name, scale, number))
            with errors_at("pert_atom", ValueError):
                copy = perturbed_apart(cell, params.pert_atom, params.pert_box, shortest, rng)
            yield f"scale {scale:g}, copy {number + 1}", copy
