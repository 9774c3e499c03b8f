"""Errors of engines as users met them: the machine's, or the task's."""

from __future__ import annotations

import pytest

from dpstream.shared.runtime.machine_faults import is_machines_fault

MACHINES = [
    (
        "OutOfMemoryError",
        "CUDA out of memory. Tried to allocate 22.00 MiB. GPU 0 has a total capacity of 23.65 GiB "
        "of which 11.06 MiB is free. Including non-PyTorch memory, this process has 23.60 GiB "
        "memory in use.",
    ),
    (
        "RuntimeError",
        "CUDA out of memory. Tried to allocate 1024.00 KiB (GPU 0; 11.17 GiB total capacity)",
    ),
    (
        "RuntimeError",
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript "
        "(most recent call last):\nRuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ),
    (
        "OutOfMemoryError",
        "The callable still throws an out-of-memory (OOM) error even when batch size is 1!",
    ),
    (
        "AcceleratorError",
        "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be "
        "asynchronously reported at some other API call",
    ),
    (
        "RuntimeError",
        "cuda runtime error (39) : uncorrectable ECC error encountered at THCCachingHostAllocator",
    ),
    ("RuntimeError", "CUDA error: out of memory"),
    ("RuntimeError", "CUDA driver error: out of memory"),
    ("RuntimeError", "CUDA error: an illegal memory access was encountered"),
    ("RuntimeError", "CUDA error: no kernel image is available for execution on the device"),
    ("RuntimeError", "CUDA error: unspecified launch failure"),
    (
        "RuntimeError",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ),
    ("RuntimeError", "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    (
        "_LinAlgError",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnDgesvd`",
    ),
    (
        "RuntimeError",
        "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost. Reboot the "
        "system to recover this GPU",
    ),
    ("NVMLError_GpuIsLost", "GPU is lost"),
    ("RuntimeError", "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."),
    (
        "RuntimeError",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
    ),
    (
        "RuntimeError",
        "DeePMD-kit Error: CUDA Runtime library throws an error: shared object symbol not found, "
        "in file /project/source/lib/src/gpu/tabulate.cu: 1127",
    ),
    ("Exception", "ERROR: DeePMD-kit Error: CUDA Runtime library throws an error: out of memory"),
    ("RuntimeError", "DeePMD-kit: Cannot find libcudart.so.12"),
    (
        "ImportError",
        "libcudart.so.12: cannot open shared object file: No such file or directory",
    ),
    (
        "ResourceExhaustedError",
        "2 root error(s) found.\n  (0) Resource exhausted: Operation received an exception: "
        "DeePMD-kit OOM: CUDA Assert, in file custom_op.cc:12",
    ),
    (
        "InternalError",
        "failed call to cuDevicePrimaryCtxRetain: CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC "
        "error encountered",
    ),
    (
        "InternalError",
        "CUDA runtime implicit initialization on GPU:0 failed. Status: "
        "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    ),
    (
        "XlaRuntimeError",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7406166528 bytes.",
    ),
    ("MemoryError", "Unable to allocate 7.45 GiB for an array with shape (1000000000,)"),
]
TASKS = [
    ("RuntimeError", "CUDA error: device-side assert triggered"),
    ("RuntimeError", "Error(s) in loading state_dict for ModelWrapper: size mismatch for model"),
    ("RuntimeError", "Expected all tensors to be on the same device, but found cuda:0 and cpu!"),
    ("RuntimeError", "The model does not have a minimum neighbor distance"),
    ("ValueError", "key 'neurons' is not allowed in strict mode"),
    ("NotImplementedError", "Model compression is not supported for this descriptor"),
    ("FileNotFoundError", "[Errno 2] No such file or directory: 'train/set.000/energy.npy'"),
    ("InvalidArgumentError", "Incompatible shapes: [1,5] vs. [1,6]"),
    ("Exception", "ERROR: Lost atoms: original 108 current 107 (src/thermo.cpp:494)"),
    ("ModuleNotFoundError", "No module named 'tensorflow'"),
    ("RuntimeError", "the gradient norm is nan"),
]


@pytest.mark.parametrize(("kind", "text"), MACHINES)
def test_another_machine_can_do_the_task(kind: str, text: str) -> None:
    assert is_machines_fault(kind, text)


@pytest.mark.parametrize(("kind", "text"), TASKS)
def test_the_task_fails_on_every_machine(kind: str, text: str) -> None:
    assert not is_machines_fault(kind, text)
