"""What of a campaign uses the virial of its labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dpstream.shared.spec.campaign import Spec
from dpstream.shared.spec.exploration import TrustLevels

PREFACTORS = ("start_pref_v", "limit_pref_v")


def virial_prefactors(spec: Spec) -> dict[str, float]:
    """All virial prefactors in the losses of the spec, of all members and of warm starts, by
    key."""
    training = spec.training
    own = {
        f"training.member_input.{number}": each for number, each in training.member_input.items()
    }
    inputs = {"training.input": training.input, **own, "training.warm_input": training.warm_input}
    return dict(found for key, given in inputs.items() for found in _prefactors(key, given))


def _prefactors(key: str, document: Any) -> Iterator[tuple[str, float]]:
    """Those of a document's losses, wherever they stand: multi-task inputs have several."""
    if not isinstance(document, dict):
        return
    for name, value in document.items():
        if name in PREFACTORS:
            yield f"{key}.{name}", float(value)
        else:
            yield from _prefactors(f"{key}.{name}", value)


def uses_of_virial(spec: Spec) -> list[str]:
    """The keys of the spec because of which labels of periodic frames must have a virial."""
    return [*dict.fromkeys(_uses(spec))]


def _uses(spec: Spec) -> Iterator[str]:
    yield from [key for key, value in virial_prefactors(spec).items() if value > 0][:1]
    if spec.material is not None:
        yield "material"
    for number, stage in enumerate(spec.stages):
        if stage.uses_virial:
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
