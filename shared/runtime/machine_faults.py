"""Which errors of an engine are faults of its machine: of memory, of a GPU or of its libraries.

Such a task is released, because another machine can do it. An error is recognised by the class and
the text of its exception, since PyTorch, TensorFlow, JAX, DeePMD-kit and LAMMPS report the same
fault in different ways.
"""

from __future__ import annotations

import re

KINDS = frozenset({"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"})
"""OutOfMemoryError: of PyTorch and DeePMD-kit; ResourceExhaustedError: of TensorFlow."""
GPUS_FAULT = re.compile(
    r"""CUDA\ (driver\ |runtime\ )?error(:|\ \(\d+\))\ (?!device-side\ assert)
    |CUDA\ out\ of\ memory
    |CUDA\ Runtime\ library\ throws\ an\ error   # DeePMD-kit
    |CUDA_ERROR_\w+                              # TensorFlow, JAX
    |CUDNN_STATUS_\w+ | CUBLAS_STATUS_\w+ | CUSOLVER_STATUS_\w+ | CUSPARSE_STATUS_\w+
    |cuDNN\ error: | NCCL\ error
    |RESOURCE_EXHAUSTED: | OOM\ when\ allocating
    |CUDA\ Assert,\ in\ file                     # DeePMD-kit's operations for TensorFlow
    |(cannot\ find|could\ not\ load\ dynamic\ library)\ \W?lib(cuda|cublas|cudnn|cusolver)
    |lib(cuda|cublas|cudnn|cusolver)[\w.]*:\ cannot\ open\ shared\ object
    |uncorrectable\ ECC | fallen\ off\ the\ bus | GPU\ is\ lost | device\ lost
    |no\ CUDA-capable\ device | Found\ no\ NVIDIA\ driver | driver\ version\ is\ insufficient
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""A device-side assertion is not among them: it fails in the same way on every GPU, for example for
an atom type out of range."""


def is_machines_fault(kind: str, text: str) -> bool:
    """`kind`: class name of the exception, `text`: its message."""
    return kind in KINDS or is_gpus_fault(text)


def is_gpus_fault(text: str) -> bool:
    return GPUS_FAULT.search(text) is not None
