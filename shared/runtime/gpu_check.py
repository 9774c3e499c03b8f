"""Checks, when a worker starts, that its engine evaluates compressed PyTorch models on the GPU."""

from __future__ import annotations

from dpstream.shared.errors import SpecError, TaskError
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import Device

CHECK_SECONDS = 300.0
"""Importing torch and making a CUDA context take most of it on a busy machine."""


def check_gpu(engine: ChildProcess, device: Device | None) -> None:
    """Call the engine's operation `check` if `device` is a GPU. Raises SpecError with the reason if
    it fails."""
    if device is None or device.kind != "cuda":
        return
    try:
        engine.call("check", {"folder": str(engine.scratch)}, seconds=CHECK_SECONDS)
    except TaskError as error:
        raise SpecError(
            f"DPSTREAM_DEVICE: {device} does not evaluate compressed PyTorch models: {error}; "
            "compressed models need nvidia-cuda-runtime-cu12"
        ) from error
