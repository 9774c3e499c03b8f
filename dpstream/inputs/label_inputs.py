"""From `systems.NAME.label` to `labels.compositions`: charge, spin and k-points of every frame of
one composition, moments in the order in which frames are written.

One composition has one potential energy surface, so two systems of the same composition must not
differ here.
"""

from __future__ import annotations

from dpstream.inputs.systems import SystemStructures
from dpstream.services.labeler.recipes import check_inputs, code_of
from dpstream.shared.atoms.frames import Canonical
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec, SystemLabel
from dpstream.shared.values import LabelInputs


def with_label_inputs(spec: Spec, structures: SystemStructures) -> Spec:
    """`spec` with the label inputs of its systems, which have these structures, written out by
    composition. Raises SpecError for inputs that do not fit the structures or the code."""
    if all(system.label is None for system in spec.systems.values()):
        return spec
    found = dict(spec.labels.compositions)
    said_by: dict[str, str] = {}
    for name in spec.systems:
        for formula, inputs in _of_system(spec, name, structures).items():
            if found.setdefault(formula, inputs) != inputs:
                other = said_by.get(formula)
                source = f"systems.{other}.label" if other else f"labels.compositions.{formula}"
                raise SpecError(
                    f"systems.{name}.label: {formula} has other label inputs in {source}; frames "
                    "of one composition share theirs"
                )
            said_by[formula] = name
    given = {formula: inputs for formula, inputs in found.items() if inputs.given}
    systems = {n: s.model_copy(update={"label": None}) for n, s in spec.systems.items()}
    labels = spec.labels.model_copy(update={"compositions": given})
    return spec.model_copy(update={"systems": systems, "labels": labels})


def _of_system(spec: Spec, name: str, structures: SystemStructures) -> dict[str, LabelInputs]:
    """By formula; structures that list their atoms differently are told apart."""
    label, key = spec.systems[name].label or SystemLabel(), f"systems.{name}.label"
    named = label.model_dump(exclude_none=True)
    check_inputs(code_of(spec.labels), named, key)
    found: dict[str, LabelInputs] = {}
    for where, structure in structures(name):
        moments = None if label.magmom is None else _moments(label.magmom, structure, key)
        inputs = LabelInputs.model_validate({**named, "magmom": moments})
        if found.setdefault(structure.frame.formula, inputs) != inputs:
            raise SpecError(
                f"{key}.magmom: {where.partition(': ')[2]} lists its atoms in another order than "
                "the structures before it; give moments by element, or one file"
            )
    return found


def _moments(
    given: dict[str, float] | tuple[float, ...], structure: Canonical, key: str
) -> tuple[float, ...]:
    """µB of each canonical atom; of elements that are not named, 0."""
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
