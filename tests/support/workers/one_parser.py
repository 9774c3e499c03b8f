"""One parser of labelled sets for many tests, whose files are all in the temporary folder that its
process may read anyway: each start costs a second of processor time."""

from __future__ import annotations

import pytest

from dpstream.inputs import read_labelled


@pytest.fixture
def one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_labelled, "_reads", lambda paths, folder: ())
