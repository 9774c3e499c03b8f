"""Files that a labeling recipe needs, such as pseudopotentials and basis sets.

The spec names them; they are read when the campaign is submitted and stored with it. The recipe
holds their digests, so that a changed file gives another recipe and all workers use the same files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo

from dpstream.shared.values import Ref, Sha256, Value, campaign_uri

MOST_BYTES = 64 * 1024 * 1024
"""Size limit of one attached file."""
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


class Attached(Value):
    """A file stored with the campaign; the program finds it in its folder under the name `file`.
    Recipes arrive in messages and specs, so that the name is checked wherever one is read."""

    file: Annotated[str, StringConstraints(pattern=rf"^{SAFE.pattern}$")]
    sha256: Sha256
    size: int = Field(ge=0, le=MOST_BYTES)

    def ref(self, campaign: str) -> Ref:
        """Reference to the file among the campaign's inputs."""
        uri = campaign_uri(campaign, "inputs", self.sha256)
        return Ref(uri=uri, sha256=self.sha256, size=self.size)


@dataclass
class ReadFiles:
    """Validation context that reads the files named in settings."""

    folder: Path
    """Folder to which names are relative."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents of attached files, by digest."""
    _names: dict[str, str] = field(default_factory=dict)

    def attach(self, name: str, folders: list[Path]) -> Attached:
        data = _bytes([folder / name for folder in (self.folder, *folders)])
        digest, file = hashlib.sha256(data).hexdigest(), Path(name).name
        if not SAFE.fullmatch(file):
            raise ValueError("a file name may contain only letters, digits and . _ + -")
        if self._names.setdefault(file, digest) != digest:
            raise ValueError("two different files have the same name")
        self.files[digest] = data
        return Attached(file=file, sha256=digest, size=len(data))


def _bytes(paths: list[Path]) -> bytes:
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"no such file: {', '.join(map(str, paths))}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes; at most {MOST_BYTES} allowed")
    return path.read_bytes()


def _reading(info: ValidationInfo) -> ReadFiles:
    if not isinstance(info.context, ReadFiles):
        raise ValueError("file names are read only from a spec file")
    return info.context


def attachment(elsewhere: Callable[[], list[Path]] = list) -> BeforeValidator:
    """Annotates an `Attached` that the spec gives as a file name, relative to the spec or in one of
    the folders that `elsewhere` returns."""

    def attach(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            return _reading(info).attach(value, elsewhere())
        if isinstance(info.context, ReadFiles):
            raise ValueError("must name a file")
        return value

    return BeforeValidator(attach)


def attached(settings: Any) -> Iterator[Attached]:
    """Every attached file in a recipe's settings. Raises ValueError for one that is none."""
    if isinstance(settings, Mapping):
        if settings.keys() == Attached.model_fields.keys():
            yield Attached.model_validate(settings)
        else:
            for value in settings.values():
                yield from attached(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from attached(value)
