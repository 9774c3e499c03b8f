"""The GPU that a worker's engines use, as NVIDIA's driver reports it.

Only this module uses NVML (package `nvidia-ml-py`). Unlike CUDA it occupies no memory of the GPU,
so that the worker may query what its engines use.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpstream.shared.errors import MachineFault, SpecError
from dpstream.shared.runtime.machine import cores

SETTING = re.compile(r"auto|cpu|cuda(?::(\d+))?")
VISIBLE = "CUDA_VISIBLE_DEVICES"
MIB = 1 << 20
CUDART = "libcudart.so.12"
"""CUDA's runtime library that DeePMD-kit's own GPU code loads; PyTorch brings a later one."""


@dataclass(frozen=True)
class Gpu:
    """A visible GPU, or a visible part of one (MIG). `index`: position among the visible ones, the
    N of `cuda:N`; `memory_mib`: 0 where the driver does not report it."""

    index: int
    name: str
    memory_mib: int
    driver: str
    uuid: str = ""

    def __str__(self) -> str:
        memory = f" {self.memory_mib} MiB" if self.memory_mib else ""
        return f"{self.name}{memory} driver {self.driver}"


@dataclass(frozen=True)
class Usage:
    """What all processes use of a GPU now; None where the driver does not report it."""

    utilisation: float | None
    """Fraction of time in which a kernel ran."""
    memory_mib: int | None


@dataclass(frozen=True)
class Device:
    """Where the engines of a worker compute. `required`: the setting demands this GPU, so that an
    engine that cannot use it is an error."""

    kind: Literal["cpu", "cuda"]
    gpu: Gpu | None = None
    required: bool = False

    def __str__(self) -> str:
        return f"cpu, {cores():g} cores" if self.gpu is None else str(self.gpu)

    def environment(self) -> dict[str, str]:
        """Variables for a child process. A GPU is named by its UUID, because CUDA and NVML number
        GPUs in different orders."""
        if self.gpu is None:
            return {VISIBLE: "", "DEVICE": "cpu"}  # DEVICE: DeePMD-kit's switch
        return {VISIBLE: self.gpu.uuid or str(self.gpu.index)}

    def check_present(self) -> None:
        """Raises MachineFault if the driver no longer has the GPU: CUDA hides it then, and an
        engine that started would compute on the CPU without a word."""
        if self.gpu is None or not self.gpu.uuid:
            return
        try:
            with _nvml() as nvml:
                nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByUUID(self.gpu.uuid))
        except _NoDriver as error:
            raise MachineFault(f"{self.gpu.name} is lost: {error}") from error


class _NoDriver(Exception):
    """NVML cannot be used; the message is the reason."""


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible; empty without a driver."""
    try:
        with _nvml() as nvml:
            return _visible(nvml)
    except _NoDriver:
        return ()


def chosen(setting: str) -> Device:
    """The device of a setting `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first visible GPU,
    else the CPU. Raises SpecError, with what was looked for, if there is no such GPU."""
    match = SETTING.fullmatch(setting)
    if match is None:
        raise SpecError(f"DPSTREAM_DEVICE: {setting!r}: must be auto, cpu, cuda or cuda:N")
    if setting == "cpu":
        return Device("cpu")
    visible = gpus()
    if setting == "auto":
        return Device("cuda", visible[0]) if visible else Device("cpu")
    number = int(match.group(1) or 0)
    if number >= len(visible):
        raise SpecError(f"DPSTREAM_DEVICE: {setting!r}: {_shown(visible) or without_gpus()}")
    return Device("cuda", visible[number], required=True)


def device_of_environment() -> Device:
    """The device of DPSTREAM_DEVICE, for commands that read no settings. Raises SpecError as
    `chosen`."""
    return chosen(os.environ.get("DPSTREAM_DEVICE") or "auto")


def usage(gpu: Gpu) -> Usage:
    """What is used of a GPU at the moment."""
    try:
        with _nvml() as nvml:
            handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            rates = _or_none(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
            memory = _or_none(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    except _NoDriver:
        return Usage(None, None)
    return Usage(
        None if rates is None else rates.gpu / 100, None if memory is None else memory.used // MIB
    )


def cuda_version() -> str:
    """The latest CUDA version that the driver supports; empty without a driver."""
    try:
        with _nvml() as nvml:
            version = nvml.nvmlSystemGetCudaDriverVersion()
    except _NoDriver:
        return ""
    return f"{version // 1000}.{version % 1000 // 10}"


def cudart_folder() -> Path | None:
    """Folder of `CUDART` in the package nvidia-cuda-runtime-cu12; None if it is not installed."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_runtime")
    except ModuleNotFoundError:
        return None
    places = () if spec is None else spec.submodule_search_locations or ()
    folders = (Path(place) / "lib" for place in places)
    return next((folder for folder in folders if (folder / CUDART).exists()), None)


def without_gpus() -> str:
    """Why no GPU is visible."""
    try:
        with _nvml() as nvml:
            count = nvml.nvmlDeviceGetCount()
            _visible(nvml)
    except _NoDriver as error:
        return str(error)
    if not count:
        return "the NVIDIA driver reports no GPU on this machine"
    if VISIBLE not in os.environ:
        return "every GPU of this machine is to be divided (MIG), but has no parts"
    hiding = f"{VISIBLE}={os.environ[VISIBLE]!r}"
    return f"{hiding} hides every GPU of this machine, which has {count}"


def _shown(visible: tuple[Gpu, ...]) -> str:
    """That there are no more GPUs than `visible`; empty if there is none."""
    if not visible:
        return ""
    last = f" to cuda:{len(visible) - 1}" if len(visible) > 1 else ""
    return f"only cuda:0{last} is visible ({', '.join(gpu.name for gpu in visible)})"


@contextmanager
def _nvml() -> Iterator[Any]:
    """The NVML module while it is initialised. Raises `_NoDriver`, also for an error within the
    block."""
    try:
        import pynvml as nvml
    except ImportError as error:
        raise _NoDriver("no GPU can be found: the package nvidia-ml-py is not installed") from error
    try:
        nvml.nvmlInit()
        try:
            yield nvml
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise _NoDriver(
            f"no GPU can be found: NVIDIA's driver does not answer ({error})"
        ) from error


def _visible(nvml: Any) -> tuple[Gpu, ...]:
    """By the rules of CUDA: an entry that matches no GPU hides itself and all that follow it."""
    units = [_units(nvml, number) for number in range(nvml.nvmlDeviceGetCount())]
    setting = os.environ.get(VISIBLE)
    if setting is None:
        handles = [handle for parts in units for handle in parts]
    else:
        handles = list(_listed(nvml, units, setting.split(",")))
    driver = nvml.nvmlSystemGetDriverVersion()
    return tuple(_gpu(nvml, index, handle, driver) for index, handle in enumerate(handles))


def _units(nvml: Any, number: int) -> list[Any]:
    """A GPU of the machine or, if it is divided, its parts (MIG)."""
    whole = nvml.nvmlDeviceGetHandleByIndex(number)
    mode = _or_none(nvml, nvml.nvmlDeviceGetMigMode, whole)
    if mode is None or mode[0] == 0:
        return [whole]
    slots = range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole))
    parts = (_or_none(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, whole, n) for n in slots)
    return [part for part in parts if part is not None]


def _listed(nvml: Any, units: list[list[Any]], entries: list[str]) -> Iterator[Any]:
    """The handles that the entries name by number, or by UUID or its beginning."""
    by_uuid = {nvml.nvmlDeviceGetUUID(part): part for parts in units for part in parts}
    for number, parts in enumerate(units):
        whole = nvml.nvmlDeviceGetHandleByIndex(number)
        by_uuid |= {nvml.nvmlDeviceGetUUID(whole): part for part in parts[:1]}
    for entry in map(str.strip, entries):
        if entry.isdecimal():
            found = units[int(entry)][:1] if int(entry) < len(units) else []
        else:
            found = [part for uuid, part in by_uuid.items() if entry and uuid.startswith(entry)]
        if len(found) != 1:
            return
        yield found[0]


def _gpu(nvml: Any, index: int, handle: Any, driver: str) -> Gpu:
    memory = _or_none(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return Gpu(
        index,
        nvml.nvmlDeviceGetName(handle),
        0 if memory is None else memory.total // MIB,
        driver,
        nvml.nvmlDeviceGetUUID(handle),
    )


def _or_none(nvml: Any, query: Any, *arguments: Any) -> Any:
    """The answer of a query that not every GPU supports."""
    try:
        return query(*arguments)
    except nvml.NVMLError:
        return None
