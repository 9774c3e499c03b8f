"""What unit tests have in common."""

from __future__ import annotations

import os
from functools import cache

import pytest
from deepmd.utils import argcheck


@pytest.fixture(autouse=True)
def nobody_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test wrote needs not outlive a power cut. The contract of stores keeps its syncs."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True, scope="session")
def nobody_describes_the_training_input_twice() -> None:
    """DeePMD-kit builds its rules for an input anew at each check, a tenth of a second each."""
    argcheck.gen_args = cache(argcheck.gen_args)
