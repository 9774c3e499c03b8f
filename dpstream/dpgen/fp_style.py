"""The interface of an `fp_style`, and its access to a param file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpstream.dpgen.key_table import Key, mapped, unused
from dpstream.shared.errors import SpecError

Json = dict[str, Any]
WORKERS_FOLDER = "each labeler reads these files from its own DPSTREAM_LABELER_POTENTIALS"
PARALLEL = "the worker sets the parallel layout: DPSTREAM_LABELER_COMMANDS"


@dataclass(frozen=True)
class FpParam:
    """The labeling keys of a param file. `place` converts a path to one relative to the spec."""

    values: Mapping[str, Any]
    type_map: Sequence[str]
    place: Callable[[str], str]

    def by_element(self, key: str) -> dict[str, str]:
        """Map elements to a list of files in the order of type_map. Raises `SpecError`."""
        files = self.values.get(key)
        if not isinstance(files, list) or len(files) != len(self.type_map):
            count = len(files) if isinstance(files, list) else "no"
            raise SpecError(
                f"{key}: {count} files for {len(self.type_map)} elements; give one for each of "
                f"{', '.join(self.type_map)}, in this order"
            )
        return dict(zip(self.type_map, files, strict=True))

    def file(self, key: str) -> dict[str, str]:
        """A reference to the text of a file, as label settings have it."""
        return {"file": self.place(self.text(key))}

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str):
            raise SpecError(f"{key}: {value!r}: must be a string")
        return value

    def mapping(self, key: str) -> Json:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise SpecError(f"{key}: {value!r}: must be a mapping")
        return dict(value)

    def first(self, *keys: str) -> str:
        """The first of these keys that the file has. Raises `SpecError` if it has none."""
        for key in keys:
            if key in self.values:
                return key
        raise SpecError(f"{keys[0]}: missing; fp_style requires {' or '.join(keys)}")


@dataclass(frozen=True)
class FpStyle:
    """One `fp_style`. `keys`: its keys in the param file; `params`: the keys inside `fp_params`, if
    they are a closed set, and also inside `user_fp_params` if it is `alike`; `read`: builds the
    labels section."""

    keys: tuple[Key, ...]
    read: Callable[[FpParam], Json]
    params: tuple[Key, ...] = ()
    alike: bool = False


ALIKE = mapped("user_fp_params", "as fp_params, instead of which it is used")
POTENTIALS = (
    unused("fp_pp_path", WORKERS_FOLDER),
    mapped("fp_pp_files", "labels.settings.potentials, by element"),
)
