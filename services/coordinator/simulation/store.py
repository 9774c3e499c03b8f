"""A store in memory that counts its requests and bytes (`ports.Store`).

Segments of ledgers are what a simulation writes most and never reads: only the newest is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dpstream.shared.errors import NotFound
from dpstream.shared.store.keys import bounded, checked, checked_prefix, entries_of

KEPT_ONCE = ("ledger", "heads")
"""Folders of a campaign of which only the newest object is kept."""


@dataclass
class MemoryStore:
    requests: Counter[str] = field(default_factory=Counter)
    """By method of the port."""
    written: Counter[str] = field(default_factory=Counter)
    """Bytes by folder of the campaign: ledger, snapshots, claims, …"""
    _objects: dict[str, bytes] = field(default_factory=dict)
    _newest: dict[str, str] = field(default_factory=dict)

    def get(self, key: str, most: int | None = None) -> bytes:
        self.requests["get"] += 1
        if key not in self._objects:
            raise NotFound(checked(key))
        bounded(key, len(self._objects[key]), most)
        return self._objects[key]

    def put(self, key: str, data: bytes) -> None:
        self.requests["put"] += 1
        self._write(checked(key), data)

    def create(self, key: str, data: bytes) -> bool:
        self.requests["create"] += 1
        if checked(key) in self._objects:
            return False
        self._write(key, data)
        return True

    def exists(self, key: str) -> bool:
        self.requests["exists"] += 1
        return checked(key) in self._objects

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        self.requests["list"] += 1
        start = checked_prefix(prefix)
        return sorted(key for key in list(self._objects) if key.startswith(start) and key > after)

    def entries(self, folder: str) -> Iterable[str]:
        return entries_of(folder, self.list(folder))

    def delete(self, key: str) -> None:
        self.requests["delete"] += 1
        self._objects.pop(checked(key), None)

    def upload(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def _write(self, key: str, data: bytes) -> None:
        folder = key.split("/")[2] if key.count("/") > 2 else ""
        self.written[folder] += len(data)
        if folder in KEPT_ONCE:
            where = key.rpartition("/")[0]
            self._objects.pop(self._newest.get(where, ""), None)
            self._newest[where] = key
        self._objects[key] = data
