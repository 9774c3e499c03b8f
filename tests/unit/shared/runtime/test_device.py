"""The GPU of a worker's engines, with a stand-in for NVIDIA's driver."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dpstream.shared.errors import SpecError
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.device import (
    Device,
    Gpu,
    Usage,
    chosen,
    cuda_version,
    cudart_folder,
    gpus,
    usage,
)
from tests.support.workers.nvml import A100, DIVIDED, DRIVER, H200, FakeGpu, has_gpus

GAMING = FakeGpu("GPU-ffff-3333", "NVIDIA GeForce RTX 4090", 24564)
LIBRARY = "no driver library"


def test_auto_is_the_first_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = has_gpus(monkeypatch, H200, A100)
    device = chosen("auto")
    assert device == Device("cuda", Gpu(0, "NVIDIA H200", 143771, DRIVER, H200.uuid))
    assert str(device) == "NVIDIA H200 143771 MiB driver 580.159.04"
    assert device.environment() == {"CUDA_VISIBLE_DEVICES": H200.uuid}
    assert nvml.open == 0, "every nvmlInit has its nvmlShutdown"


def test_auto_is_the_cpu_without_a_driver_or_its_python_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_gpus(monkeypatch, H200, broken=LIBRARY)
    assert chosen("auto") == Device("cpu")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (chosen("auto"), gpus(), cuda_version()) == (Device("cpu"), (), "")


def test_the_cpu_is_used_although_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, H200)
    assert chosen("cpu").environment() == {"CUDA_VISIBLE_DEVICES": "", "DEVICE": "cpu"}
    assert str(chosen("cpu")).endswith(" cores")


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, [H200, A100, GAMING]),
        ("1", [A100]),
        ("2,0", [GAMING, H200]),
        ("1,7,0", [A100]),
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
        (H200.uuid, [H200]),
        ("GPU-bbbb", [A100]),
        ("GPU-", []),
        ("GPU-bbbb, GPU-aaaa", [A100, H200]),
    ],
)
def test_visible_gpus_are_numbered_as_cuda_numbers_them(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[FakeGpu]
) -> None:
    has_gpus(monkeypatch, H200, A100, GAMING, visible=visible)
    assert [(gpu.index, gpu.uuid) for gpu in gpus()] == list(enumerate(each.uuid for each in found))


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["GPU-aaaa-0000", "MIG-dddd-0", "MIG-eeee-1"]),
        ("MIG-eeee-1", ["MIG-eeee-1"]),
        ("1", ["MIG-dddd-0"]),
        ("GPU-cccc-2222", ["MIG-dddd-0"]),
    ],
)
def test_parts_of_a_divided_gpu_count_as_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[str]
) -> None:
    has_gpus(monkeypatch, H200, DIVIDED, visible=visible)
    assert [gpu.uuid for gpu in gpus()] == found


def test_cuda_n_is_that_of_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, H200, A100, GAMING, visible="2,1")
    assert chosen("cuda:1").environment() == {"CUDA_VISIBLE_DEVICES": A100.uuid}
    assert (chosen("cuda:1").required, chosen("auto").required) == (True, False)


@pytest.mark.parametrize(
    ("setting", "machine", "visible", "reason"),
    [
        ("cuda", [], None, "the NVIDIA driver reports no GPU on this machine"),
        (
            "cuda",
            [H200, A100],
            "",
            "CUDA_VISIBLE_DEVICES='' hides every GPU of this machine, which",
        ),
        (
            "cuda:2",
            [H200, A100],
            None,
            "only cuda:0 to cuda:1 is visible (NVIDIA H200, NVIDIA A100",
        ),
        ("cuda:1", [H200, A100], "1", "only cuda:0 is visible (NVIDIA A100"),
        ("gpu", [H200], None, "must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_missing_gpu_is_an_error_with_what_was_looked_for(
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    machine: list[FakeGpu],
    visible: str | None,
    reason: str,
) -> None:
    has_gpus(monkeypatch, *machine, visible=visible)
    with pytest.raises(SpecError) as caught:
        chosen(setting)
    assert str(caught.value).startswith(f"DPSTREAM_DEVICE: {setting!r}: {reason}")


def test_a_missing_driver_or_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, broken=LIBRARY)
    with pytest.raises(SpecError, match=rf"driver does not answer \({LIBRARY}\)"):
        chosen("cuda")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SpecError, match="the package nvidia-ml-py is not installed"):
        chosen("cuda")


def test_a_lost_gpu_and_one_without_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = has_gpus(monkeypatch, replace(DIVIDED, parts=()))
    with pytest.raises(SpecError, match=r"to be divided \(MIG\), but has no parts"):
        chosen("cuda")

    def lost(index: int) -> FakeGpu:
        raise nvml.NVMLError("GPU is lost")

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lost)
    assert chosen("auto") == Device("cpu")
    with pytest.raises(SpecError, match="GPU is lost"):
        chosen("cuda")
    assert nvml.open == 0


def test_the_use_of_a_gpu_is_read_as_far_as_the_driver_reports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unified = FakeGpu("GPU-9999", "NVIDIA GB10", total_mib=None)
    has_gpus(monkeypatch, H200, DIVIDED, unified)
    whole, part, _, shared = gpus()
    assert usage(whole) == Usage(0.25, 1024)
    assert usage(part) == Usage(None, 1024)
    assert usage(shared) == Usage(0.25, None)
    assert str(shared) == f"NVIDIA GB10 driver {DRIVER}"
    assert cuda_version() == "13.0"
    has_gpus(monkeypatch, broken=LIBRARY)
    assert usage(whole) == Usage(None, None)


@pytest.fixture
def cuda_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of libcudart.so.12, as the package nvidia-cuda-runtime-cu12 installs it."""
    folder = tmp_path / "site-packages/nvidia/cuda_runtime/lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.12").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    return folder


def environment_of(child: ChildProcess) -> dict[str, str]:
    return child._environment()


def test_a_child_finds_the_runtime_library_of_cuda_12(
    cuda_runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = ChildProcess("no_module", tmp_path)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert environment_of(child)["LD_LIBRARY_PATH"] == str(cuda_runtime)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lammps/lib")
    assert environment_of(child)["LD_LIBRARY_PATH"] == f"/opt/lammps/lib:{cuda_runtime}"


def test_another_cuda_runtime_is_not_taken_for_it(cuda_runtime: Path) -> None:
    (cuda_runtime / "libcudart.so.12").rename(cuda_runtime / "libcudart.so.13")
    assert cudart_folder() is None


def test_a_child_sees_only_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, H200, A100, visible="0,1")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/mps")
    monkeypatch.setenv("DP_INFER_BATCH_SIZE", "4096")
    monkeypatch.setenv("DEVICE", "cpu")
    free = environment_of(ChildProcess("no_module", tmp_path))
    assert free["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert (free["CUDA_MPS_PIPE_DIRECTORY"], free["DP_INFER_BATCH_SIZE"]) == ("/tmp/mps", "4096")
    bound = environment_of(ChildProcess("no_module", tmp_path, device=chosen("cuda:1")))
    assert bound["CUDA_VISIBLE_DEVICES"] == A100.uuid
    assert "DEVICE" not in bound
    without = environment_of(ChildProcess("no_module", tmp_path, device=chosen("cpu")))
    assert (without["CUDA_VISIBLE_DEVICES"], without["DEVICE"]) == ("", "cpu")
