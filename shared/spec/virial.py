"""What of a campaign uses the virial of its labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dpstream.shared.spec.campaign import Spec
from dpstream.shared.spec.exploration import TrustLevels

PREFACTORS = ("start_pref_v", "limit_pref_v")
LOSS = "training.input.loss"


def virial_prefactors(spec: Spec) -> list[float]:
    """All virial prefactors in the losses of the spec, of all members and of warm starts."""
    training = spec.training
    inputs = (training.input, *training.member_input.values(), training.warm_input)
    return [value for given in inputs for value in _prefactors(given)]


def _prefactors(document: Any) -> Iterator[float]:
    """Those of a document's losses, wherever they stand: multi-task inputs have several."""
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        if key in PREFACTORS:
            yield float(value)
        else:
            yield from _prefactors(value)


def uses_of_virial(spec: Spec) -> list[str]:
    """The keys of the spec because of which labels of periodic frames must have a virial."""
    return [*dict.fromkeys(_uses(spec))]


def _uses(spec: Spec) -> Iterator[str]:
    if any(value > 0 for value in virial_prefactors(spec)):
        yield f"{LOSS}.start_pref_v"
    if spec.material is not None:
        yield "material"
    for number, stage in enumerate(spec.stages):
        if stage.md.ensemble.startswith("npt"):
            yield f"stages.{number}.md.ensemble"
        if any(map(_judges_virial, (stage.trust, *stage.system_trust.values()))):
            yield f"stages.{number}.trust.low_v"
    if _judges_virial(spec.trust):
        yield "trust.low_v"
    for number, wanted in enumerate(spec.verification.properties):
        if wanted.property == "elastic":
            yield f"verification.properties.{number}"


def _judges_virial(trust: Any) -> bool:
    return isinstance(trust, TrustLevels) and trust.low_v is not None


def needs_virial(spec: Spec) -> bool:
    """Whether labels of periodic frames must have a virial: as `labels.virial` says, or as far as
    the campaign uses it."""
    stated = spec.labels.virial
    return bool(uses_of_virial(spec)) if stated is None else stated
