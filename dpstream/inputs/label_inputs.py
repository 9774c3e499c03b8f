"""Converts `systems.NAME.label` to `labels.compositions`: charge, spin, k-points and magnetic
moments for all frames of one composition.

Labelers see frames, not systems, so label inputs are stored by composition. One composition has one
potential energy surface; two systems of the same composition therefore must have the same inputs.
"""

from __future__ import annotations

from dpstream.inputs.systems import SystemStructures
from dpstream.services.labeler.recipes import check_inputs, code_of
from dpstream.shared.atoms.frames import Canonical
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec, SystemLabel
from dpstream.shared.values import LabelInputs


def with_label_inputs(spec: Spec, structures: SystemStructures) -> Spec:
    """`spec` with the label inputs of its systems converted to `labels.compositions`. Raises
    SpecError for inputs that do not fit the structures or the code."""
    if all(system.label is None for system in spec.systems.values()):
        return spec
    compositions = dict(spec.labels.compositions)
    set_by: dict[str, str] = {}
    for name in spec.systems:
        for formula, inputs in _of_system(spec, name, structures).items():
            if compositions.setdefault(formula, inputs) != inputs:
                other = set_by.get(formula)
                source = f"systems.{other}.label" if other else f"labels.compositions.{formula}"
                raise SpecError(
                    f"systems.{name}.label: {formula} has different label inputs in {source}; "
                    "all frames of one composition must have the same"
                )
            set_by[formula] = name
    given = {formula: inputs for formula, inputs in compositions.items() if inputs.given}
    systems = {n: s.model_copy(update={"label": None}) for n, s in spec.systems.items()}
    labels = spec.labels.model_copy(update={"compositions": given})
    return spec.model_copy(update={"systems": systems, "labels": labels})


def _of_system(spec: Spec, name: str, structures: SystemStructures) -> dict[str, LabelInputs]:
    """Label inputs by formula. Raises SpecError if moments are given per atom and structures list
    their atoms in different orders."""
    label, key = spec.systems[name].label or SystemLabel(), f"systems.{name}.label"
    named = label.model_dump(exclude_none=True)
    check_inputs(code_of(spec.labels), named, key)
    found: dict[str, LabelInputs] = {}
    for where, structure in structures(name):
        moments = None if label.magmom is None else _moments(label.magmom, structure, key)
        inputs = LabelInputs.model_validate({**named, "magmom": moments})
        if found.setdefault(structure.frame.formula, inputs) != inputs:
            raise SpecError(
                f"{key}.magmom: {where.partition(': ')[2]} lists its atoms in a different order "
                "from the structures before it; give moments by element, or a single file"
            )
    return found


def _moments(
    given: dict[str, float] | tuple[float, ...], structure: Canonical, key: str
) -> tuple[float, ...]:
    """Magnetic moments of the canonical atoms, µB; 0 for elements that are not listed."""
    species = structure.frame.species
    if isinstance(given, dict):
        unknown = sorted(given.keys() - set(species))
        if unknown:
            raise SpecError(f"{key}.magmom: {unknown[0]} is not in {structure.frame.formula}")
        return tuple(given.get(symbol, 0.0) for symbol in species)
    if len(given) != len(species):
        raise SpecError(
            f"{key}.magmom: {len(given)} moments for the {len(species)} atoms of "
            f"{structure.frame.formula}"
        )
    return tuple(given[i] for i in structure.order)
