"""The part of a worker's environment that its engines and labeling programs may see.

A worker's own environment contains secrets, such as the broker's URL and cloud keys. Programs of a
batch system need more than the usual variables: `srun` inside an allocation has to see `SLURM_*`,
or it asks for a second one. `DPSTREAM_PASS` names such variables.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable

PASSED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_MPS_PIPE_DIRECTORY",
    "DP_INFER_BATCH_SIZE",
    "LD_LIBRARY_PATH",
    "COVERAGE_RCFILE",
)
PASS = "DPSTREAM_PASS"
"""The variable with further patterns, separated by commas."""
SECRET = ("*ACCESS_KEY*", "*CREDENTIAL*", "*PASSWORD*", "*SECRET*", "*TOKEN*", "*_JWT")
"""Patterns of secrets."""
SECRETS = (
    "DPSTREAM_BROKER",
    "DPSTREAM_STORE_SECRET_KEY",
    "DPSTREAM_API_TOKEN",
    "DPSTREAM_LABELER_SIGNING_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
)
"""Secrets that no pattern of `DPSTREAM_PASS` may match, set or not."""


def passed_environment() -> dict[str, str]:
    """The variables of this process that match `PASSED` or `DPSTREAM_PASS`, without secrets."""
    patterns = (*PASSED, *filter(None, map(str.strip, os.environ.get(PASS, "").split(","))))
    return {
        name: value
        for name, value in os.environ.items()
        if _matches(name, patterns) and not name.startswith("DPSTREAM_") and not is_secret(name)
    }


def checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns. Raises ValueError if one matches a secret."""
    for pattern in patterns:
        for secret in SECRETS:
            if fnmatch.fnmatchcase(secret, pattern):
                raise ValueError(f"{pattern!r} matches the secret {secret}; give narrower patterns")
    return patterns


def is_secret(name: str) -> bool:
    return name in SECRETS or _matches(name, SECRET)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
