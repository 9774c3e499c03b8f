"""Keeps TensorFlow from importing Keras, which DeePMD-kit does not use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_keras() -> Iterator[None]:
    """Import TensorFlow in here: it takes 2.9 s instead of 3.9 s, because Keras imports Matplotlib,
    too. Keras can be imported afterwards."""
    if "keras" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["keras"]
