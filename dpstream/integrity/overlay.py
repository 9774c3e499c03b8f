"""A store whose changes stay in memory until they are written: a repair is tried out on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dpstream.shared.errors import NotFound, StoreError
from dpstream.shared.ports import Store
from dpstream.shared.store.keys import entries_of


class Overlay:
    """Changes over a store (`ports.Store`)."""

    def __init__(self, base: Store) -> None:
        self.base = base
        self._now: dict[str, bytes | None] = {}
        """Changed objects; None: deleted."""
        self._changes: list[tuple[str, str, bytes]] = []

    def get(self, key: str, most: int | None = None) -> bytes:
        if key not in self._now:
            return self.base.get(key, most)
        data = self._now[key]
        if data is None:
            raise NotFound(f"no object {key!r}")
        return data

    def put(self, key: str, data: bytes) -> None:
        self._now[key] = data
        self._changes.append(("put", key, data))

    def create(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        self._now[key] = data
        self._changes.append(("create", key, data))
        return True

    def exists(self, key: str) -> bool:
        return self._now[key] is not None if key in self._now else self.base.exists(key)

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        new = {key for key in self._now if key.startswith(prefix) and key > after}
        found = {*self.base.list(prefix, after), *new}
        return sorted(key for key in found if self._now.get(key, b"") is not None)

    def entries(self, folder: str) -> Iterable[str]:
        return entries_of(folder, self.list(folder))

    def delete(self, key: str) -> None:
        self._now[key] = None
        self._changes.append(("delete", key, b""))

    def upload(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def write(self) -> None:
        """Writes all changes, in their order. Raises StoreError if an object that they create was
        created by another process since."""
        for change, key, data in self._changes:
            if change == "put":
                self.base.put(key, data)
            elif change == "delete":
                self.base.delete(key)
            elif not self.base.create(key, data) and self.base.get(key) != data:
                raise StoreError(f"{key}: written by another process meanwhile; repair again")
