"""The log lines of this process; logging is configured as before once the test ends."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog


@pytest.fixture
def log_stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, ours = (root.handlers[:], root.level), structlog.get_config()
    yield io.StringIO()
    structlog.configure(**ours)
    structlog.contextvars.clear_contextvars()
    root.handlers[:], level = before
    root.setLevel(level)


def log_lines(log_stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_stream.getvalue().splitlines()]
