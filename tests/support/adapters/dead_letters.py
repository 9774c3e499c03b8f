"""The dead letters of a store, as an operator reads them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from dpstream.shared.ports import Store
from dpstream.shared.values import DEADLETTER_PREFIX


def letters(objects: Iterable[bytes]) -> list[dict[str, Any]]:
    """The lines of these objects, with `body` as bytes."""
    lines = [json.loads(line) for data in objects for line in data.splitlines()]
    return [{**line, "body": base64.b64decode(line["body"])} for line in lines]


def buried_bodies(store: Store) -> list[bytes]:
    keys = list(store.list(DEADLETTER_PREFIX))
    return [letter["body"] for letter in letters(store.get(key) for key in keys)]
