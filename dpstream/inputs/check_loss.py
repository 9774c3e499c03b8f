"""Checks that losses and models match the imported data.

A loss term without its data, or data that the loss would misread, is an error. Data that no loss
or model uses is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpstream.inputs.read_labelled import Imported
from dpstream.services.trainer.training_input import merge
from dpstream.shared.atoms.frames import PARAMETERS
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import AutoTrust, Spec

ABSENT = {"ae": "atom_ener", "gf": "drdq"}
"""Loss terms of DeePMD-kit, by prefactor, whose data dpstream does not carry."""
LOSS = "training.input.loss"


def check_loss(spec: Spec, labelled: Sequence[Imported], test: Sequence[Imported]) -> None:
    """Raises `SpecError` if a loss or model needs data that the imported sets lack, or if they
    contain energies that the loss would misread."""
    for loss in _losses(spec):
        for term, name in ABSENT.items():
            if _is_weighted(loss, term):
                raise SpecError(
                    f"{LOSS}.start_pref_{term}: needs {name}.npy, which dpstream does not support"
                )
        if _is_weighted(loss, "pf") and not _carried(labelled, "atom_pref"):
            raise SpecError(
                f"{LOSS}.start_pref_pf: no set in initial.data contains atom_pref.npy, so the "
                "term would be zero"
            )
        _check_coefficients(loss, labelled)
    for item in test:
        if item.label.atom_ener_coeff is not None:
            raise SpecError(
                f"verification.data: {item.source}: contains atom_ener_coeff, but the final model "
                "is tested on total energies; remove this set"
            )
    _check_parameters(spec, "initial.data", labelled)
    _check_parameters(spec, "verification.data", test)


def _check_coefficients(loss: Mapping[str, Any], labelled: Sequence[Imported]) -> None:
    enabled, sets = loss.get("enable_atom_ener_coeff", False), _carried(labelled, "atom_ener_coeff")
    if enabled and not sets:
        raise SpecError(
            f"{LOSS}.enable_atom_ener_coeff: no set in initial.data contains atom_ener_coeff.npy"
        )
    if sets and not enabled:
        raise SpecError(
            f"initial.data: {sets[0].source}: contains atom_ener_coeff, so its energies are "
            f"weighted sums; set {LOSS}.enable_atom_ener_coeff: true for every member"
        )


def _check_parameters(spec: Spec, key: str, items: Sequence[Imported]) -> None:
    for name, size in spec.training.parameters.items():
        for item in items:
            values = item.frame.parameters.get(name)
            count = 0 if values is None else values.shape[-1]
            if size and count != size:
                raise SpecError(
                    f"{key}: {item.source}: has {count} values of {name}, but "
                    f"training.input.model.fitting_net.numb_{name} is {size}"
                )


def loss_warnings(spec: Spec, labelled: Sequence[Imported]) -> Iterator[str]:
    """Warnings of settings that work but may be unintended."""
    losses = _losses(spec)
    if any(_is_weighted(loss, "pf") for loss in losses):
        yield (
            f"{LOSS}.start_pref_pf: affects only frames of initial.data with atom_pref; computed "
            "labels have none"
        )
    elif _carried(labelled, "atom_pref"):
        yield f"initial.data: atom_pref is not used, because {LOSS}.start_pref_pf is 0"
    yield from _lonely_relative(spec, losses)
    yield from _idle_parameters(spec, labelled)
    for name, system in spec.systems.items():
        if (system.fparam or system.aparam) and spec.labels.electron_temperature is None:
            yield (
                f"systems.{name}: fparam and aparam are passed to the models and distinguish "
                f"frames, but not passed to labels.code {spec.labels.code}"
            )


def _lonely_relative(spec: Spec, losses: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A relative loss and relative trust levels should be used together."""
    trusts = [spec.trust, *(stage.trust for stage in spec.stages if stage.trust is not None)]
    judged = [not isinstance(t, AutoTrust) and t.relative is not None for t in trusts]
    learned = [loss.get("relative_f") is not None for loss in losses]
    if any(learned) and not any(judged):
        yield (
            f"{LOSS}.relative_f: large forces are fitted less closely, but the trust levels are "
            "absolute; set trust.relative too"
        )
    if any(judged) and not any(learned):
        yield (
            "trust.relative: the deviation is relative to the force, but the loss is absolute; "
            f"set {LOSS}.relative_f too"
        )


def _idle_parameters(spec: Spec, labelled: Sequence[Imported]) -> Iterator[str]:
    for name in PARAMETERS:
        present = any(name in item.frame.parameters for item in labelled)
        if present and not spec.training.parameters[name]:
            yield (
                f"initial.data: {name} is not used, because "
                f"training.input.model.fitting_net.numb_{name} is 0"
            )


def _losses(spec: Spec) -> list[Mapping[str, Any]]:
    """The given part of the loss section, for every member."""
    training = spec.training
    own = (training.member_input.get(member, {}) for member in range(training.members))
    return [merge(training.input, over).get("loss", {}) for over in own]


def _is_weighted(loss: Mapping[str, Any], term: str) -> bool:
    return any(loss.get(f"{end}_pref_{term}", 0.0) != 0 for end in ("start", "limit"))


def _carried(labelled: Sequence[Imported], name: str) -> list[Imported]:
    return [item for item in labelled if name in item.label.weights]
