"""What a style is, and what it reads from a param file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpstream.dpgen.key_table import Key, mapped, unused
from dpstream.shared.errors import SpecError

Json = dict[str, Any]
WORKERS_FOLDER = "each labeler has these files in its own folder: DPSTREAM_LABELER_POTENTIALS"
PARALLEL = "the worker sets the parallel layout: DPSTREAM_LABELER_COMMANDS"


@dataclass(frozen=True)
class FpParam:
    """A param file as far as labels go. `place`: a path of the file as one of the campaign."""

    values: Mapping[str, Any]
    type_map: Sequence[str]
    place: Callable[[str], str]

    def by_element(self, key: str) -> dict[str, str]:
        """A list of files in the order of type_map, by element."""
        files = self.values.get(key)
        if not isinstance(files, list) or len(files) != len(self.type_map):
            found = len(files) if isinstance(files, list) else "no"
            raise SpecError(
                f"{key}: {found} files for {len(self.type_map)} elements; give one for each of "
                f"{', '.join(self.type_map)}, in this order"
            )
        return dict(zip(self.type_map, files, strict=True))

    def file(self, key: str) -> dict[str, str]:
        """As settings name a file whose text they take."""
        return {"file": self.place(self.text(key))}

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str):
            raise SpecError(f"{key}: {value!r}: should be a string")
        return value

    def mapping(self, key: str) -> Json:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise SpecError(f"{key}: {value!r}: should be a mapping of keys")
        return dict(value)

    def first(self, *keys: str) -> str:
        """The first of these keys that is given; one has to be."""
        for key in keys:
            if key in self.values:
                return key
        raise SpecError(f"{keys[0]}: missing; fp_style needs {' or '.join(keys)}")


@dataclass(frozen=True)
class FpStyle:
    """One `fp_style`. `keys`: its own in the param file; `params`: those inside `fp_params`, where
    they are a closed set; `read`: the labels section."""

    keys: tuple[Key, ...]
    read: Callable[[FpParam], Json]
    params: tuple[Key, ...] = ()


POTENTIALS = (
    unused("fp_pp_path", WORKERS_FOLDER),
    mapped("fp_pp_files", "labels.settings.potentials, by element"),
)
