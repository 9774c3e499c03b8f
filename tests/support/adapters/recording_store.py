"""A store in memory that records what was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dpstream.shared.errors import NotFound
from dpstream.shared.store.keys import entries_of


class RecordingStore:
    """In memory; keeps every key that a write was attempted for, valid or not."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.written: list[str] = []

    def get(self, key: str, most: int | None = None) -> bytes:
        if key not in self.objects:
            raise NotFound(key)
        return self.objects[key]

    def put(self, key: str, data: bytes) -> None:
        self.written.append(key)
        self.objects[key] = data

    def create(self, key: str, data: bytes) -> bool:
        self.written.append(key)
        if key in self.objects:
            return False
        self.objects[key] = data
        return True

    def exists(self, key: str) -> bool:
        return key in self.objects

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        return sorted(key for key in self.objects if key.startswith(prefix) and key > after)

    def entries(self, folder: str) -> Iterable[str]:
        return entries_of(folder, self.list(folder))

    def delete(self, key: str) -> None:
        self.written.append(key)
        self.objects.pop(key, None)

    def upload(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))
