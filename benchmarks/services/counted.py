"""A store that counts its requests."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dpstream.shared.ports import Store


class CountedStore:
    """Wraps a store and counts its calls by the HTTP method that an S3 store would use. Requests
    inside the adapter (retries, the check after a lost race) are not counted."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def requests(self) -> dict[str, int]:
        """PUT, GET, HEAD, LIST, DELETE."""
        with self._lock:
            return dict(self._counts)

    def get(self, key: str, most: int | None = None) -> bytes:
        self._count("GET")
        return self.store.get(key, most)

    def put(self, key: str, data: bytes) -> None:
        self._count("PUT")
        self.store.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self._count("PUT")
        return self.store.create(key, data)

    def exists(self, key: str) -> bool:
        self._count("HEAD")
        return self.store.exists(key)

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        self._count("LIST")
        return self.store.list(prefix, after)

    def entries(self, folder: str) -> Iterable[str]:
        self._count("LIST")
        return self.store.entries(folder)

    def delete(self, key: str) -> None:
        self._count("DELETE")
        self.store.delete(key)

    def upload(self, key: str, path: Path) -> None:
        self._count("PUT")
        self.store.upload(key, path)

    def download(self, key: str, path: Path) -> None:
        self._count("GET")
        self.store.download(key, path)

    def _count(self, method: str) -> None:
        with self._lock:
            self._counts[method] += 1
