"""What a model was trained on, for its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dpstream.shared.runtime.device import Device
from dpstream.shared.values import DeviceFacts

SYNONYMS = {"": "float64", "default": "float64", "double": "float64", "single": "float32"}
"""DeePMD-kit's other names of precisions, and none."""


def device_facts(
    described: Mapping[str, str], device: Device | None, document: Mapping[str, Any]
) -> DeviceFacts:
    """The facts of a training by `document`, its input. `described`: what the engine reports of
    itself: `backend`, `device` and `runtime`."""
    facts = DeviceFacts(kind="cpu", backend=described["backend"], precision=precision(document))
    if not on_gpu(described):
        return facts
    gpu = None if device is None else device.gpu
    card = {"model": gpu.name, "memory_mib": gpu.memory_mib, "driver": gpu.driver} if gpu else {}
    return facts.model_copy(update={"kind": "cuda", "runtime": described["runtime"], **card})


def on_gpu(described: Mapping[str, str]) -> bool:
    return described["device"] != "cpu"


def precision(document: Mapping[str, Any]) -> str:
    """Precision of the weights of descriptor and fitting net; *mixed* if they differ."""
    if document.get("training", {}).get("mixed_precision"):
        return "mixed"
    model = document["model"]
    found = {*_precisions(model.get("descriptor")), *_precisions(model.get("fitting_net"))}
    return found.pop() if len(found) == 1 else "mixed" if found else "float64"


def _precisions(section: Any) -> Iterator[str]:
    """Of one network, or of each of a hybrid descriptor; DeePMD-kit's default is float64."""
    if isinstance(section, Mapping):
        parts = section.get("list")
        if parts is None:
            name = str(section.get("precision", ""))
            yield SYNONYMS.get(name, name)
        for part in parts or ():
            yield from _precisions(part)
