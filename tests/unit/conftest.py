"""What unit tests have in common."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def nobody_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test wrote needs not outlive a power cut. The contract of stores keeps its syncs."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
