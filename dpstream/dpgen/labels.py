"""Converts `fp_style` and its keys to the `labels` section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpstream.dpgen.fp_style import FpParam, FpStyle, Json
from dpstream.dpgen.fp_styles import CLUSTERS, ELSEWHERE, STYLES
from dpstream.dpgen.key_table import Key, KeyLine, account, ignored, unused
from dpstream.services.labeler.recipes import supports
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import did_you_mean

STYLE_KEYS = {key.name for style in STYLES.values() for key in style.keys}


def keys_of(values: Mapping[str, Any]) -> Sequence[Key]:
    """The keys of the fp_style of a param file."""
    style = STYLES.get(str(values.get("fp_style")))
    return () if style is None else style.keys


def check_style(values: Mapping[str, Any]) -> None:
    """Raises `SpecError` for an fp_style that is missing, unknown or not supported."""
    name = values.get("fp_style")
    if not isinstance(name, str) or name not in STYLES:
        why = ELSEWHERE.get(str(name)) or _other(name)
        raise SpecError(f"fp_style: {name!r}: {why}")


def read_labels(given: FpParam, keys: Mapping[str, Any]) -> tuple[Json, list[KeyLine]]:
    """The labels section of a known style, and a line for each of `keys`, the keys that belong to
    the style. Raises `SpecError`."""
    name = str(given.values["fp_style"])
    style = STYLES[name]
    lines = account(keys, _with_others(name, style))
    for source in ("fp_params", "user_fp_params")[: 2 if style.alike else 1]:
        if style.params and isinstance(keys.get(source), dict):
            lines += account(keys[source], style.params, f"{source}.")
    return style.read(given), lines


def _with_others(name: str, style: FpStyle) -> list[Key]:
    """The table of a style, and the keys of the others, which it does not use."""
    own = {key.name for key in style.keys}
    others = sorted(STYLE_KEYS - own)
    return [*style.keys, *(ignored(key, f"fp_style {name} has no such key") for key in others)]


def relabelled(code: str, keys: Mapping[str, Any]) -> tuple[Json, list[KeyLine]]:
    """The labels section for `code` with its defaults, used instead of fp_style. Clusters have the
    lowest multiplicity, because a bond that breaks may leave an odd number of electrons."""
    own = {key.name: key for key in CLUSTERS}
    table = [own.get(key, unused(key, f"--code {code} computes the labels")) for key in STYLE_KEYS]
    lowest = keys.get("use_clusters") and supports(code, "multiplicity")
    labels = {"code": code} | ({"multiplicity": 0} if lowest else {})
    return labels, account(keys, table)


def _other(name: Any) -> str:
    return (did_you_mean(str(name), STYLES) or f"; known: {', '.join(STYLES)}").removeprefix("; ")
