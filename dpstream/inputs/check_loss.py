"""What losses and models ask of the data, and what the data brings that nobody asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpstream.inputs.read_labelled import Imported
from dpstream.services.trainer.training_input import merge
from dpstream.shared.atoms.frames import PARAMETERS
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import AutoTrust, Spec

ABSENT = {"ae": "atom_ener", "gf": "drdq"}
"""Terms of DeePMD-kit's loss, by their prefactors, whose data dpstream does not carry."""
LOSS = "training.input.loss"


def check_loss(spec: Spec, labelled: Sequence[Imported], test: Sequence[Imported]) -> None:
    """Raises `SpecError` where a loss or model needs what the imported sets have not got, or where
    they hold energies that the loss would misread."""
    for loss in _losses(spec):
        for term, name in ABSENT.items():
            if _weighs(loss, term):
                raise SpecError(
                    f"{LOSS}.start_pref_{term}: needs {name}.npy, which dpstream does not carry"
                )
        if _weighs(loss, "pf") and not _carried(labelled, "atom_pref"):
            raise SpecError(
                f"{LOSS}.start_pref_pf: no set of initial.data has atom_pref.npy, so the term "
                "would be zero"
            )
        _check_coefficients(loss, labelled)
    for item in test:
        if item.label.atom_ener_coeff is not None:
            raise SpecError(
                f"verification.data: {item.source}: has atom_ener_coeff: the final model is "
                "measured on total energies"
            )
    _check_parameters(spec, "initial.data", labelled)
    _check_parameters(spec, "verification.data", test)


def _check_coefficients(loss: Mapping[str, Any], labelled: Sequence[Imported]) -> None:
    asked, there = loss.get("enable_atom_ener_coeff", False), _carried(labelled, "atom_ener_coeff")
    if asked and not there:
        raise SpecError(
            f"{LOSS}.enable_atom_ener_coeff: no set of initial.data has atom_ener_coeff.npy"
        )
    if there and not asked:
        raise SpecError(
            f"initial.data: {there[0].source}: has atom_ener_coeff, so its energies are weighted "
            f"sums; set {LOSS}.enable_atom_ener_coeff: true for every member"
        )


def _check_parameters(spec: Spec, key: str, items: Sequence[Imported]) -> None:
    for name, size in spec.training.parameters.items():
        for item in items:
            values = item.frame.parameters.get(name)
            given = 0 if values is None else values.shape[-1]
            if size and given != size:
                raise SpecError(
                    f"{key}: {item.source}: has {given} numbers of {name}, but "
                    f"training.input.model.fitting_net.numb_{name} is {size}"
                )


def loss_warnings(spec: Spec, labelled: Sequence[Imported]) -> Iterator[str]:
    """What works, but may not be meant."""
    losses = _losses(spec)
    if any(_weighs(loss, "pf") for loss in losses):
        yield (
            f"{LOSS}.start_pref_pf: only frames of initial.data that have atom_pref feel it; "
            "labels computed here have none"
        )
    elif _carried(labelled, "atom_pref"):
        yield f"initial.data: its atom_pref is not used: {LOSS}.start_pref_pf is 0"
    yield from _lonely_relative(spec, losses)
    yield from _idle_parameters(spec, labelled)
    for name, system in spec.systems.items():
        if (system.fparam or system.aparam) and spec.labels.electron_temperature is None:
            yield (
                f"systems.{name}: fparam and aparam go to the models and into the identity of a "
                f"frame; labels.code {spec.labels.code} is not told of them"
            )


def _lonely_relative(spec: Spec, losses: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A loss relative to the force and trust levels relative to it belong together."""
    trusts = [spec.trust, *(stage.trust for stage in spec.stages if stage.trust is not None)]
    judged = [not isinstance(t, AutoTrust) and t.relative is not None for t in trusts]
    learned = [loss.get("relative_f") is not None for loss in losses]
    if any(learned) and not any(judged):
        yield (
            f"{LOSS}.relative_f: large forces are fitted less closely, but the trust levels are "
            "absolute; give trust.relative too"
        )
    if any(judged) and not any(learned):
        yield (
            "trust.relative: the deviation is judged relative to the force, but the loss is "
            f"absolute; give {LOSS}.relative_f too"
        )


def _idle_parameters(spec: Spec, labelled: Sequence[Imported]) -> Iterator[str]:
    for name in PARAMETERS:
        there = any(name in item.frame.parameters for item in labelled)
        if there and not spec.training.parameters[name]:
            yield (
                f"initial.data: its {name} is not used: "
                f"training.input.model.fitting_net.numb_{name} is 0"
            )


def _losses(spec: Spec) -> list[Mapping[str, Any]]:
    """The loss section of every member, as far as it is given."""
    training = spec.training
    own = (training.member_input.get(member, {}) for member in range(training.members))
    return [merge(training.input, over).get("loss", {}) for over in own]


def _weighs(loss: Mapping[str, Any], term: str) -> bool:
    return any(loss.get(f"{end}_pref_{term}", 0.0) != 0 for end in ("start", "limit"))


def _carried(labelled: Sequence[Imported], name: str) -> list[Imported]:
    return [item for item in labelled if name in item.label.weights]
