"""DP-GEN's `fp_style`s: for each, a table of its keys and a function that builds `labels`."""

from __future__ import annotations

import math
from typing import Any

from dpstream.dpgen.fp_style import ALIKE, PARALLEL, POTENTIALS, FpParam, FpStyle, Json
from dpstream.dpgen.key_table import mapped, refused, unused
from dpstream.dpgen.plane_waves import QE, VASP
from dpstream.shared.errors import SpecError


def _cp2k(given: FpParam) -> Json:
    source = given.first("external_input_path", "user_fp_params", "fp_params")
    if source == "external_input_path":
        return {"code": "cp2k", "settings": {"template": given.file(source)}}
    return {"code": "cp2k", "settings": {"keywords": _kinds(given.mapping(source))}}


def _kinds(value: Any) -> Any:
    """Convert DP-GEN's columns `{_: [C, H], POTENTIAL: [a, b]}` to one section per element, at any
    depth."""
    if not isinstance(value, dict):
        return value
    names = value.get("_")
    if not isinstance(names, list):
        return {key: _kinds(inner) for key, inner in value.items()}
    return [
        {key: column[i] if isinstance(column, list) else column for key, column in value.items()}
        for i in range(len(names))
    ]


OWN_DATA = "CP2K finds potentials and basis sets by their names"
CP2K = FpStyle(
    keys=(
        mapped("user_fp_params", "labels.settings.keywords, with the same nesting"),
        mapped("fp_params", "labels.settings.keywords, with the same nesting"),
        mapped("external_input_path", "labels.settings.template, the file's text"),
        unused("fp_pp_path", OWN_DATA),
        unused("fp_pp_files", OWN_DATA),
    ),
    read=_cp2k,
)


def _gaussian(given: FpParam) -> Json:
    source = given.first("user_fp_params", "fp_params")
    params = given.mapping(source)
    route = params.get("keywords")
    if isinstance(route, list) and len(route) == 1:
        route = route[0]
    if not isinstance(route, str):
        raise SpecError(f"{source}.keywords: must be a string with one route section")
    settings = {"keywords": route}
    if "basis_set" in params:
        settings["extra"] = params["basis_set"]
    spin = params.get("multiplicity", "auto")
    lowest = {"multiplicity": 0} if given.values.get("use_clusters") else {}
    own = lowest if spin == "auto" else {"multiplicity": spin}
    return {"code": "gaussian", "settings": settings, "charge": params.get("charge", 0), **own}


CLUSTERS = (
    mapped("use_clusters", "selection.clusters, around the atom with the largest deviation"),
    mapped("cluster_cutoff", "selection.clusters.radius, Å"),
    refused("cluster_cutoff_hard", "molecules are not cut; remove it to label them whole"),
    unused("cluster_minify", "molecules are not cut, and no hydrogen atoms are added"),
)
GAUSSIAN = FpStyle(
    keys=(*CLUSTERS, mapped("fp_params", "labels.settings"), ALIKE),
    alike=True,
    params=(
        mapped("keywords", "labels.settings.keywords"),
        mapped(
            "multiplicity",
            "labels.multiplicity; auto: 1, with use_clusters the lowest possible; others: "
            "systems.*.label.multiplicity",
        ),
        unused("nproc", PARALLEL),
        mapped("charge", "labels.charge"),
        refused("fragment_guesses", "not supported; Gaussian makes the initial guess", False),
        mapped("basis_set", "labels.settings.extra"),
        refused("keywords_high_multiplicity", "one recipe labels all frames; remove it"),
    ),
    read=_gaussian,
)


def _abacus(given: FpParam) -> Json:
    source = given.first("user_fp_params", "fp_incar")
    settings: Json = {"potentials": given.by_element("fp_pp_files")}
    if source == "fp_incar":
        settings["input"] = given.file(source)
    else:
        tags = given.mapping(source)
        settings["input"] = {k: v for k, v in tags.items() if k.lower() not in ABACUS_OURS}
    if "fp_orb_files" in given.values:
        settings["orbitals"] = given.by_element("fp_orb_files")
    if "k_points" in given.values:
        settings["kpoints"] = _mesh(given.values["k_points"])
    return {"code": "abacus", "settings": settings}


ABACUS_OURS = ("ntype", "calculation", "cal_force", "cal_stress", "suffix", "stru_file")


def _mesh(points: Any) -> list[int]:
    if not isinstance(points, list) or len(points) not in (3, 6) or any(points[3:]):
        raise SpecError(f"k_points: {points!r}: must be three numbers without a shift")
    return [int(number) for number in points[:3]]


ABACUS = FpStyle(
    keys=(
        *POTENTIALS,
        mapped("fp_orb_files", "labels.settings.orbitals, by element"),
        mapped("fp_incar", "labels.settings.input, the file's text"),
        refused("fp_kpt_file", "give its mesh as k_points"),
        refused(
            "fp_dpks_descriptor",
            "labels of DeePKS are not supported; remove it and the keys deepks_… of user_fp_params "
            "to label with ABACUS' own functional",
        ),
        mapped(
            "user_fp_params", "labels.settings.input, except for the keywords that dpstream sets"
        ),
        mapped("k_points", "labels.settings.kpoints"),
    ),
    read=_abacus,
)


def _siesta(given: FpParam) -> Json:
    params = given.mapping(given.first("user_fp_params", "fp_params"))
    fdf: Json = {"XC.functional": "GGA", "XC.authors": "PBE"}
    fdf |= {FDF[key][0]: f"{params[key]}{FDF[key][1]}" for key in FDF if key in params}
    if "kspacing" in params:
        fdf["kgrid.Cutoff"] = f"{math.pi / float(params['kspacing']):.6f} Ang"
    settings = {"potentials": given.by_element("fp_pp_files"), "fdf": fdf}
    return {"code": "siesta", "settings": settings}


FDF = {
    "ecut": ("MeshCutoff", " Ry"),
    "ediff": ("DM.Tolerance", ""),
    "mixingWeight": ("DM.MixingWeight", ""),
    "NumberPulay": ("DM.NumberPulay", ""),
}
SIESTA = FpStyle(
    keys=(*CLUSTERS[:2], *POTENTIALS, mapped("fp_params", "labels.settings.fdf"), ALIKE),
    alike=True,
    params=(
        *(mapped(key, f"labels.settings.fdf.{name}{unit}") for key, (name, unit) in FDF.items()),
        mapped("kspacing", "labels.settings.fdf.kgrid.Cutoff, π / kspacing"),
    ),
    read=_siesta,
)


def _pwmat(given: FpParam) -> Json:
    source = given.first("fp_incar", "user_fp_params")
    settings: Json = {"potentials": given.by_element("fp_pp_files")}
    if source == "fp_incar":
        return {"code": "pwmat", "settings": settings | {"etot_input": given.file(source)}}
    tags = {str(key).lower(): value for key, value in given.mapping(source).items()}
    if "mp_n123" not in tags:
        settings |= _pwmat_mesh(tags, source)
    parallel = [tags.get("node1", 1), tags.get("node2", 1)]
    left = {
        key.upper(): value
        for key, value in tags.items()
        if key not in PWMAT_OURS and not key.startswith("in.psp")
    }
    return {"code": "pwmat", "settings": settings | {"etot_input": left, "parallel": parallel}}


def _pwmat_mesh(tags: Json, source: str) -> Json:
    if "kspacing" not in tags:
        raise SpecError(f"{source}.kspacing: missing; give it, or mp_n123")
    symmetry = tags.get("flag_symm")
    known = {} if symmetry in (None, "NONE") else {"symmetry": symmetry}
    return {"kspacing": tags["kspacing"], **known}


PWMAT_OURS = ("node1", "node2", "job", "in.atom", "out.mlmd", "kspacing", "flag_symm")
"""Tags that dpstream sets, and those from which DP-GEN makes a mesh."""
ETOT = "give them as user_fp_params, with mp_n123 or kspacing, or as an etot.input in fp_incar"
PWMAT = FpStyle(
    keys=(
        *POTENTIALS,
        mapped("fp_incar", "labels.settings.etot_input, the file's text"),
        mapped(
            "user_fp_params",
            "labels.settings.etot_input, except for the tags that dpstream sets; node1, node2: "
            "labels.settings.parallel; kspacing and flag_symm, without mp_n123: "
            "labels.settings.kspacing and symmetry",
        ),
        refused("fp_params", ETOT),
    ),
    read=_pwmat,
)


def _custom(given: FpParam) -> Json:
    params = given.mapping("fp_params")
    missing = [key.name for key in CUSTOM.params if key.name not in params]
    if missing:
        raise SpecError(f"fp_params.{missing[0]}: missing; fp_style custom requires it")
    return {
        "code": "custom",
        "settings": {
            "program": "custom",
            "method": "custom program",
            "input": {"format": params["input_fmt"], "file": params["input_fn"]},
            "output": {"format": params["output_fmt"], "file": params["output_fn"]},
        },
    }


CUSTOM = FpStyle(
    keys=(
        mapped(
            "fp_params", "labels.settings; set the command by DPSTREAM_LABELER_COMMANDS='custom=…'"
        ),
    ),
    params=(
        mapped("input_fmt", "labels.settings.input.format"),
        mapped("input_fn", "labels.settings.input.file"),
        mapped("output_fmt", "labels.settings.output.format"),
        mapped("output_fn", "labels.settings.output.file"),
    ),
    read=_custom,
)

STYLES: dict[str, FpStyle] = {
    "vasp": VASP,
    "pwscf": QE,
    "cp2k": CP2K,
    "gaussian": GAUSSIAN,
    "abacus": ABACUS,
    "siesta": SIESTA,
    "pwmat": PWMAT,
    "custom": CUSTOM,
}
ELSEWHERE = {
    "cpx": "Car–Parrinello dynamics, where single points are needed; set fp_style: pwscf, the same "
    "functional and pseudopotentials",
    "amber/diff": "labels that are differences of two levels of theory (DPRc) are not supported; "
    "continue with dpgen run",
}
"""Styles of DP-GEN without an equivalent in dpstream."""
