"""Keywords of pw.x's namelists: which a recipe may set, and which can give no label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpstream.services.labeler.codes.input_words import is_true
from dpstream.shared.atoms.frames import Frame

Namelist = dict[str, bool | int | float | str]
NAME = re.compile(r"[A-Za-z]\w*(?:\(\d+(?:, ?\d+)*\))?")
# fmt: off
OURS: Mapping[str, frozenset[str]] = {
    "control": frozenset({
        "calculation", "prefix", "outdir", "wfcdir", "pseudo_dir", "tprnfor", "tstress",
        "restart_mode",
    }),
    "system": frozenset({
        "ibrav", "nat", "ntyp", "ecutwfc", "ecutrho", "nspin", "smearing", "degauss", "tot_charge",
    }),
    "electrons": frozenset({"conv_thr"}),
}
# fmt: on
"""Keywords that have settings of their own or are set by dpstream."""
CELL = "dpstream writes the cell of each frame in Å"
UNUSABLE: Mapping[str, Mapping[str, str]] = {
    "control": {
        "max_seconds": "give labels.max_seconds; pw.x then ends without a label",
        "lfcp": "it changes the charge of the cell with each step",
        "lfcpopt": "it changes the charge of the cell with each step",
        "lfcpdyn": "it changes the charge of the cell with each step",
    },
    "system": {
        **dict.fromkeys(("a", "b", "c", "cosab", "cosac", "cosbc", "celldm"), CELL),
        "space_group": "dpstream writes all atoms of each frame",
    },
    "electrons": {},
}
"""Keywords, without their index, with which pw.x gives no label of a frame."""
MAKOV_PAYNE = ("makov-payne", "m-p", "mp")
MARTYNA_TUCKERMAN = ("martyna-tuckerman", "m-t", "mt")
PERIODIC = "pbc"
DERIVABLE = ("atomic", "ortho-atomic")
"""Projections of DFT+U for which pw.x has forces."""


def checked_namelist(name: str, given: Namelist) -> Namelist:
    """The user's part of a namelist, names in lower case. Raises ValueError for an invalid keyword
    or value, and for a keyword that has a setting of its own or is set by dpstream."""
    for key, value in given.items():
        if not NAME.fullmatch(key):
            raise ValueError(f"{key!r} is not a keyword")
        if key.lower() in OURS[name]:
            raise ValueError(f"{key}: remove it; it has its own setting or dpstream writes it")
        if isinstance(value, str) and "\n" in value:
            raise ValueError(f"{key}: a value is one line of text")
    return {key.lower(): value for key, value in given.items()}


def check_keywords(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for keywords with which pw.x gives no label of any frame."""
    for name in UNUSABLE:
        for key, value in settings[name].items():
            _check_keyword(name, key, value)
    _check_together(settings["system"], settings["nspin"])


def _check_keyword(name: str, key: str, value: Any) -> None:
    reason = UNUSABLE[name].get(key.partition("(")[0])
    if reason is not None:
        raise ValueError(f"{name}.{key}: remove it; {reason}")
    if key == "scf_must_converge" and not is_true(value):
        raise ValueError(f"{name}.{key}: remove it; unconverged labels are always rejected")


def _check_together(system: Namelist, nspin: int) -> None:
    """Raises ValueError for values of &SYSTEM with which pw.x computes no forces, or refuses to
    start."""
    if _word(system, "occupations") == "from_input":
        raise ValueError("system.occupations: from_input needs a card that dpstream does not write")
    if _word(system, "assume_isolated") in MAKOV_PAYNE:
        raise ValueError(
            "system.assume_isolated: pw.x has makov-payne for cells given by ibrav only; use mt"
        )
    if is_true(system.get("noncolin")) and nspin != 1:
        raise ValueError("nspin: remove it; with system.noncolin pw.x sets it to 4")
    if is_true(system.get("lspinorb")) and not is_true(system.get("noncolin")):
        raise ValueError("system.lspinorb: needs system.noncolin: true")
    if is_true(system.get("lda_plus_u")):
        _check_hubbard(system)


def _check_hubbard(system: Namelist) -> None:
    if system.get("lda_plus_u_kind", 0) == 1:
        raise ValueError("system.lda_plus_u_kind: pw.x has no forces for kind 1; use 0")
    projection = _word(system, "u_projection_type")
    if projection and projection not in DERIVABLE:
        raise ValueError(
            f"system.u_projection_type: pw.x has no forces for {projection!r}; use "
            f"{' or '.join(DERIVABLE)}"
        )


def unsuitable(frame: Frame, settings: Mapping[str, Any]) -> str | None:
    """Why pw.x refuses a frame, or all frames that have no electron temperature; None if it does
    not."""
    system = settings["system"]
    if _word(system, "occupations") == "smearing" and settings["smearing"] is None:
        return "labels.settings.system.occupations: remove it; give smearing and degauss"
    if _word(system, "exxdiv_treatment").startswith("vcut") and not _is_orthorhombic(frame):
        return "labels.settings.system.exxdiv_treatment: pw.x has vcut for orthorhombic cells only"
    return None


def _is_orthorhombic(frame: Frame) -> bool:
    assert frame.cell is not None
    return bool(np.allclose(frame.cell, np.diag(np.diag(frame.cell)), atol=1e-8))


def without_stress(settings: Mapping[str, Any]) -> str | None:
    """The first setting with which pw.x computes no stress, or none normal to a slab; None if it
    computes all of it."""
    control, system = settings["control"], settings["system"]
    for key in ("tefield", "gate"):
        if is_true(control.get(key)):
            return f"control.{key}"
    isolated = _word(system, "assume_isolated")
    periodic = _word(system, "esm_bc") in ("", PERIODIC)
    if isolated in MARTYNA_TUCKERMAN or (isolated == "esm" and not periodic):
        return f"system.assume_isolated: {isolated}"
    return None


def needs_mesh(system: Namelist) -> bool:
    """Whether pw.x refuses `K_POINTS gamma`, with which it computes real wave functions."""
    return is_true(system.get("noncolin")) or _word(system, "occupations").startswith("tetrahedra")


def _word(values: Mapping[str, Any], key: str) -> str:
    return str(values.get(key, "")).lower().strip("'\" ")
