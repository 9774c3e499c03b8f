"""Files that a labeling recipe needs, named in the spec and read when a campaign is submitted.

They go to the store with the campaign and the recipe holds their digests, so that a changed file
is another recipe and every worker has the very same one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator, ValidationInfo

from dpstream.shared.values import Ref, Value, campaign_uri

MOST_BYTES = 64 * 1024 * 1024
"""Of one attached file."""
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


class Attached(Value):
    """A file that travels with the campaign; the run finds it in its folder under `file`."""

    file: str
    sha256: str
    size: int

    def ref(self, campaign: str) -> Ref:
        """Where it is kept with a campaign."""
        return Ref(
            uri=campaign_uri(campaign, "inputs", self.sha256), sha256=self.sha256, size=self.size
        )


@dataclass
class ReadFiles:
    """Validation context in which the files that settings name are read."""

    folder: Path
    """Names are relative to it."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents of attached files, by digest."""
    _names: dict[str, str] = field(default_factory=dict)

    def attach(self, name: str, folders: list[Path]) -> Attached:
        data = _bytes([folder / name for folder in (self.folder, *folders)])
        digest, file = hashlib.sha256(data).hexdigest(), Path(name).name
        if not SAFE.fullmatch(file):
            raise ValueError("a file's name should be of letters, digits and . _ + -")
        if self._names.setdefault(file, digest) != digest:
            raise ValueError("two different files of one name")
        self.files[digest] = data
        return Attached(file=file, sha256=digest, size=len(data))


def _bytes(paths: list[Path]) -> bytes:
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"no such file: {', '.join(map(str, paths))}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES} bytes")
    return path.read_bytes()


def _reading(info: ValidationInfo) -> ReadFiles:
    if not isinstance(info.context, ReadFiles):
        raise ValueError("names a file, which is only read from a spec")
    return info.context


def attachment(elsewhere: Callable[[], list[Path]] = list) -> BeforeValidator:
    """Annotates an `Attached` that the spec names by file, relative to it or in the folders that
    `elsewhere` gives."""

    def attach(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            return _reading(info).attach(value, elsewhere())
        if isinstance(info.context, ReadFiles):
            raise ValueError("should name a file")
        return value

    return BeforeValidator(attach)


def attached(settings: Any) -> Iterator[Attached]:
    """Every attached file in a recipe's settings."""
    if isinstance(settings, Mapping):
        if settings.keys() == Attached.model_fields.keys():
            yield Attached.model_validate(settings)
        else:
            for value in settings.values():
                yield from attached(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from attached(value)
