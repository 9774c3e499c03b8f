"""A stand-in for `pynvml`, the Python interface of NVIDIA's driver, with GPUs of choice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

DRIVER = "580.159.04"
MIB = 1 << 20


@dataclass(frozen=True)
class FakeGpu:
    """A GPU, or with `name` of a MIG profile a part of one."""

    uuid: str
    name: str = "NVIDIA H200"
    total_mib: int | None = 143771
    used_mib: int = 1024
    utilisation: int | None = 25
    parts: tuple[FakeGpu, ...] | None = None
    """The parts into which it is divided; None: it is whole."""


H200 = FakeGpu("GPU-aaaa-0000")
A100 = FakeGpu("GPU-bbbb-1111", "NVIDIA A100-SXM4-40GB", 40960)
DIVIDED = FakeGpu(
    "GPU-cccc-2222",
    parts=(
        FakeGpu("MIG-dddd-0", "NVIDIA H200 MIG 1g.18gb", 18000, utilisation=None),
        FakeGpu("MIG-eeee-1", "NVIDIA H200 MIG 2g.35gb", 35000, utilisation=None),
    ),
)


class FakeNvml(ModuleType):
    """The functions of `pynvml` that dpstream calls. `broken`: the driver does not answer."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: Sequence[FakeGpu] = (), broken: str = "") -> None:
        super().__init__("pynvml")
        self.gpus, self.broken, self.open = gpus, broken, 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError(self.broken)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        assert self.open
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in self.gpus:
            for each in (gpu, *(gpu.parts or ())):
                if each.uuid == uuid:
                    return each
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        if gpu.name.startswith("NVIDIA GeForce"):
            raise self.NVMLError("Not Supported")
        divided = int(gpu.parts is not None)
        return [divided, divided]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> FakeGpu:
        if index >= len(gpu.parts or ()):
            raise self.NVMLError("Not Found")
        return (gpu.parts or ())[index]

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> Any:
        if gpu.total_mib is None:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(total=gpu.total_mib * MIB, used=gpu.used_mib * MIB)

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> Any:
        if gpu.utilisation is None:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=gpu.utilisation, memory=0)

    def nvmlSystemGetDriverVersion(self) -> str:
        return DRIVER

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13000


def has_gpus(
    monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu, visible: str | None = None, broken: str = ""
) -> FakeNvml:
    """This machine has `gpus`, and CUDA_VISIBLE_DEVICES is `visible` (None: unset)."""
    nvml = FakeNvml(gpus, broken)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return nvml
