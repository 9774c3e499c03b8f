"""The `fp_style`s vasp and pwscf."""

from __future__ import annotations

from typing import Any

from dpstream.dpgen.fp_style import POTENTIALS, FpParam, FpStyle, Json
from dpstream.dpgen.key_table import mapped, refused, unused
from dpstream.shared.errors import SpecError

# ------------------------------------------------------------------------------------------- VASP


def _vasp(given: FpParam) -> Json:
    if given.values.get("use_ele_temp") and given.values.get("fp_nbands_esti_data") is not None:
        raise SpecError(
            "fp_nbands_esti_data: NBANDS is not estimated for each frame; remove it, and set in "
            "the INCAR an NBANDS that suffices for the largest cell and temperature"
        )
    source = given.first("fp_incar", "user_fp_params", "fp_params")
    incar: Any = given.file(source) if source == "fp_incar" else given.mapping(source)
    settings: Json = {"potentials": given.by_element("fp_pp_files")}
    settings["incar"] = _incar(incar) if source == "fp_params" else incar
    return {"code": "vasp", "settings": settings}


FIXED_INCAR: Json = {
    "PREC": "A",
    "ISYM": 0,
    "ALGO": "fast",
    "LREAL": "A",
    "NELMIN": 4,
    "ISIF": 2,
    "IBRION": -1,
    "NSW": 0,
    "LWAVE": False,
    "LCHARG": False,
    "PSTRESS": 0,
    "KGAMMA": False,
}
"""INCAR tags that DP-GEN sets in addition to `fp_params`."""
INCAR = {
    "ecut": "ENCUT",
    "ediff": "EDIFF",
    "kspacing": "KSPACING",
    "sigma": "SIGMA",
    "npar": "NPAR",
    "kpar": "KPAR",
}


def _incar(params: Json) -> Json:
    keywords = {**FIXED_INCAR, **{INCAR[k]: v for k, v in params.items() if k in INCAR}}
    if params.get("smearing") is not None:
        keywords["ISMEAR"] = _ismear(str(params["smearing"]))
    if params.get("metagga", "NONE") not in (None, "NONE"):
        keywords |= {"METAGGA": params["metagga"], "LASPH": True}
    own = params.get("user_vasp_params") or {}
    return keywords | {key.upper(): value for key, value in own.items()}


def _ismear(text: str) -> int:
    kind, _, order = text.lower().partition(":")
    if kind == "mp":
        return int(order or 1)
    if kind not in ("gauss", "fd"):
        raise SpecError(f"fp_params.smearing: {text!r}: must be gauss, fd or mp:N")
    return 0 if kind == "gauss" else -1


BAD_BOX = mapped(
    "fp_skip_bad_box",
    "min_distance: selection.min_distance for all pairs; tilt_ratio: selection.max_skew; the "
    "other criteria are not used",
)
VASP = FpStyle(
    keys=(
        *POTENTIALS,
        mapped("fp_incar", "labels.settings.incar, the file's text"),
        mapped("user_fp_params", "labels.settings.incar"),
        mapped("fp_params", "labels.settings.incar, under the names of INCAR tags"),
        refused("fp_aniso_kspacing", "set a mesh in labels.settings.kpoints"),
        unused("cvasp", "a failed label is rejected with its reason; see labels.settings.retries"),
        BAD_BOX,
        unused(
            "fp_nbands_esti_data",
            "DP-GEN uses it with use_ele_temp only; there it is refused: set NBANDS in the INCAR",
        ),
    ),
    params=(
        *(mapped(ours, f"labels.settings.incar.{theirs}") for ours, theirs in INCAR.items()),
        mapped("smearing", "labels.settings.incar.ISMEAR"),
        mapped("metagga", "labels.settings.incar.METAGGA"),
        mapped("user_vasp_params", "labels.settings.incar"),
    ),
    read=_vasp,
)


# ------------------------------------------------------------------------------- Quantum ESPRESSO


def _qe(given: FpParam) -> Json:
    source = given.first("user_fp_params", "fp_params")
    params = given.mapping(source)
    settings = _namelists(params) if source == "user_fp_params" else _pw_keywords(params)
    folder = given.values.get("fp_pp_path") or "."
    files = given.by_element("fp_pp_files")
    pseudo = {symbol: given.place(f"{folder}/{file}") for symbol, file in files.items()}
    present = {key: value for key, value in settings.items() if value not in (None, {})}
    return {"code": "qe", "settings": {"pseudopotentials": pseudo, **present}}


OURS: dict[str, tuple[str, ...]] = {
    "control": ("calculation", "tprnfor", "tstress", "outdir", "pseudo_dir", "prefix"),
    "system": ("ibrav", "nat", "ntyp", "occupations"),
    "electrons": (),
}
"""Keywords that dpstream sets in every input."""
LIFTED: dict[str, tuple[str, ...]] = {
    "control": (),
    "system": ("ecutwfc", "ecutrho", "nspin", "smearing", "degauss"),
    "electrons": ("conv_thr",),
}
"""Keywords that are separate label settings."""
SMEARINGS = {
    **dict.fromkeys(("gaussian", "gauss"), "gaussian"),
    **dict.fromkeys(("methfessel-paxton", "m-p", "mp"), "methfessel-paxton"),
    **dict.fromkeys(("marzari-vanderbilt", "cold", "m-v", "mv"), "marzari-vanderbilt"),
    **dict.fromkeys(("fermi-dirac", "f-d", "fd"), "fermi-dirac"),
}


def _namelists(params: Json) -> Json:
    settings: Json = {"kspacing": params.get("kspacing")}
    for name, ours in OURS.items():
        keywords = {str(k).lower(): v for k, v in (params.get(name) or {}).items()}
        if name == "system" and keywords.get("occupations", "smearing") != "smearing":
            ours = tuple(key for key in ours if key != "occupations")
        settings |= {key: keywords[key] for key in LIFTED[name] if key in keywords}
        left = {k: v for k, v in keywords.items() if k not in (*ours, *LIFTED[name])}
        settings[name] = left
    return settings | _smearing(settings.get("smearing"), settings.get("degauss"), "user_fp_params")


def _pw_keywords(params: Json) -> Json:
    return {
        "ecutwfc": params.get("ecut"),
        "conv_thr": params.get("ediff"),
        "kspacing": params.get("kspacing"),
        **_smearing(params.get("smearing"), params.get("sigma"), "fp_params"),
    }


def _smearing(kind: Any, width: Any, where: str) -> Json:
    if kind is None:
        return {}
    name = SMEARINGS.get(str(kind).lower().partition(":")[0])
    if name is None:
        raise SpecError(f"{where}.smearing: {kind!r}: must be one of {', '.join(SMEARINGS)}")
    return {"smearing": name, "degauss": width}


QE = FpStyle(
    keys=(
        mapped("fp_pp_path", "prepended to labels.settings.pseudopotentials"),
        mapped("fp_pp_files", "labels.settings.pseudopotentials, by element"),
        mapped(
            "user_fp_params",
            "labels.settings: ecutwfc, ecutrho, nspin, smearing, degauss, conv_thr, kspacing; the "
            "rest in control, system, electrons; without the keywords that dpstream sets "
            "(calculation, tprnfor, outdir, pseudo_dir, ibrav, nat, ntyp)",
        ),
        mapped("fp_params", "labels.settings"),
    ),
    params=(
        mapped("ecut", "labels.settings.ecutwfc, Ry"),
        mapped("ediff", "labels.settings.conv_thr, Ry"),
        mapped("smearing", "labels.settings.smearing"),
        mapped("sigma", "labels.settings.degauss, Ry"),
        mapped("kspacing", "labels.settings.kspacing, 1/Å"),
    ),
    read=_qe,
)
