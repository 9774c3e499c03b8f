"""DP-GEN's `fp_style`s in the words of our labeling codes: one table and one function for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpstream.dpgen.document import Key, mapped, refused, unused
from shared.errors import SpecError

Json = dict[str, Any]
WORKERS_FOLDER = "each labeler has a folder of its own for such files"


@dataclass(frozen=True)
class Given:
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

    def file(self, key: str) -> str:
        return self.place(self.text(key))

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
class Style:
    """One `fp_style`. `keys`: its own in the param file; `params`: those inside `fp_params`, where
    they are a closed set; `read`: the labels section."""

    keys: tuple[Key, ...]
    read: Callable[[Given], Json]
    params: tuple[Key, ...] = ()


# ------------------------------------------------------------------------------------------- VASP


def _vasp(given: Given) -> Json:
    source = given.first("fp_incar", "user_fp_params", "fp_params")
    settings: Json = {"pseudopotentials": given.by_element("fp_pp_files")}
    if source == "fp_incar":
        settings["incar"] = given.file(source)
    elif source == "user_fp_params":
        settings["keywords"] = given.mapping(source)
    else:
        settings["keywords"] = _incar(given.mapping(source))
    if "fp_aniso_kspacing" in given.values:
        settings["kspacing"] = given.values["fp_aniso_kspacing"]
    if given.values.get("cvasp"):
        settings["retry"] = True
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
"""What DP-GEN writes beside `fp_params`."""
INCAR = {"ecut": "ENCUT", "ediff": "EDIFF", "kspacing": "KSPACING", "sigma": "SIGMA"}
PARALLEL = "parallel layout is the worker's"


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
        raise SpecError(f"fp_params.smearing: {text!r}: should be gauss, fd or mp:N")
    return 0 if kind == "gauss" else -1


def _pseudo(words: str = "labels.settings.pseudopotentials, by element") -> tuple[Key, ...]:
    return unused("fp_pp_path", WORKERS_FOLDER), mapped("fp_pp_files", words)


BAD_BOX = mapped(
    "fp_skip_bad_box",
    "min_distance: selection.min_distance of all pairs; tilt_ratio: selection.max_skew; the "
    "other criteria are not used",
)
VASP = Style(
    keys=(
        *_pseudo(),
        mapped("fp_incar", "labels.settings.incar, the file's text"),
        mapped("user_fp_params", "labels.settings.keywords"),
        mapped("fp_params", "labels.settings.keywords, by INCAR's names"),
        mapped("fp_aniso_kspacing", "labels.settings.kspacing, one for each direction"),
        mapped("cvasp", "labels.settings.retry"),
        BAD_BOX,
        refused("fp_nbands_esti_data", "give NBANDS in the INCAR"),
    ),
    params=(
        *(mapped(ours, f"labels.settings.keywords.{theirs}") for ours, theirs in INCAR.items()),
        mapped("smearing", "labels.settings.keywords.ISMEAR"),
        mapped("metagga", "labels.settings.keywords.METAGGA"),
        mapped("user_vasp_params", "labels.settings.keywords"),
        unused("npar", PARALLEL),
        unused("kpar", PARALLEL),
    ),
    read=_vasp,
)


# ------------------------------------------------------------------------------- Quantum ESPRESSO


def _qe(given: Given) -> Json:
    source = given.first("user_fp_params", "fp_params")
    params = given.mapping(source)
    settings: Json = {"pseudopotentials": given.by_element("fp_pp_files")}
    if source == "user_fp_params":
        settings |= {key: value for key, value in params.items() if key not in WRITTEN_FOR_US}
        settings |= {s: _theirs(s, settings[s]) for s in WRITTEN_BY_US if s in settings}
    else:
        settings |= _pw_keywords(params)
    return {"code": "qe", "settings": {key: value for key, value in settings.items() if value}}


WRITTEN_FOR_US = ("ions", "cell")
"""Namelists of `pw.x` that a single point does without."""
WRITTEN_BY_US: dict[str, tuple[str, ...]] = {
    "control": ("calculation", "tprnfor", "tstress", "outdir", "pseudo_dir", "prefix", "disk_io"),
    "system": ("ibrav", "nat", "ntyp"),
}


def _theirs(section: str, values: Json) -> Json:
    """What is left of a namelist without what every input of ours has anyway."""
    return {k: v for k, v in values.items() if k.lower() not in WRITTEN_BY_US[section]}


SMEARINGS = {"gauss": "gaussian", "mp": "methfessel-paxton", "fd": "fermi-dirac"}


def _pw_keywords(params: Json) -> Json:
    system: Json = {"ecutwfc": params.get("ecut")}
    if params.get("smearing") is not None:
        kind = str(params["smearing"]).lower().partition(":")[0]
        if kind not in SMEARINGS:
            raise SpecError(f"fp_params.smearing: {kind!r}: should be {', '.join(SMEARINGS)}")
        system |= {"occupations": "smearing", "smearing": SMEARINGS[kind]}
        system["degauss"] = params.get("sigma")
    return {
        "system": {key: value for key, value in system.items() if value is not None},
        "electrons": {"conv_thr": params["ediff"]} if "ediff" in params else {},
        "kspacing": params.get("kspacing"),
    }


QE = Style(
    keys=(
        *_pseudo(),
        mapped(
            "user_fp_params",
            "labels.settings.control, .system, .electrons, .kspacing; what every input has anyway "
            "(calculation, tprnfor, pseudo_dir, nat, ntyp, ibrav …) is left out",
        ),
        mapped("fp_params", "labels.settings.system, .electrons, .kspacing"),
    ),
    params=(
        mapped("ecut", "labels.settings.system.ecutwfc, Ry"),
        mapped("ediff", "labels.settings.electrons.conv_thr, Ry"),
        mapped("smearing", "labels.settings.system.smearing"),
        mapped("sigma", "labels.settings.system.degauss, Ry"),
        mapped("kspacing", "labels.settings.kspacing, 1/Å"),
    ),
    read=_qe,
)


# -------------------------------------------------------------------------------------- the others


def _cp2k(given: Given) -> Json:
    source = given.first("external_input_path", "user_fp_params", "fp_params")
    if source == "external_input_path":
        return {"code": "cp2k", "settings": {"template": given.file(source)}}
    return {"code": "cp2k", "settings": {"keywords": given.mapping(source)}}


OWN_DATA = "CP2K finds potentials and basis sets by their names"
CP2K = Style(
    keys=(
        mapped("user_fp_params", "labels.settings.keywords, nested as they are"),
        mapped("fp_params", "labels.settings.keywords, nested as they are"),
        mapped("external_input_path", "labels.settings.template, the file's text"),
        unused("fp_pp_path", OWN_DATA),
        unused("fp_pp_files", OWN_DATA),
    ),
    read=_cp2k,
)


def _gaussian(given: Given) -> Json:
    params = given.mapping("fp_params")
    settings = {key: params[key] for key in ("keywords", "basis_set") if key in params}
    multiplicity = params.get("multiplicity", "auto")
    labels: Json = {"code": "gaussian", "charge": params.get("charge", 0)}
    if multiplicity == "auto":
        return labels | {"settings": settings | {"multiplicity": "auto"}}
    return labels | {"settings": settings, "multiplicity": multiplicity}


NO_CLUSTERS = "clusters are not cut from cells; explore the clusters themselves, as molecules"
CLUSTERS = (
    refused("use_clusters", NO_CLUSTERS, False),
    unused("cluster_cutoff", "belongs to use_clusters"),
    unused("cluster_cutoff_hard", "belongs to use_clusters"),
    unused("cluster_minify", "belongs to use_clusters"),
)
GAUSSIAN = Style(
    keys=(*CLUSTERS, mapped("fp_params", "labels.settings")),
    params=(
        mapped("keywords", "labels.settings.keywords"),
        mapped("multiplicity", "labels.multiplicity; auto: labels.settings.multiplicity"),
        unused("nproc", PARALLEL),
        mapped("charge", "labels.charge"),
        refused("fragment_guesses", "guesses are the code's own", False),
        mapped("basis_set", "labels.settings.basis_set"),
        refused("keywords_high_multiplicity", "one recipe labels all frames; drop it"),
    ),
    read=_gaussian,
)


def _abacus(given: Given) -> Json:
    source = given.first("user_fp_params", "fp_incar")
    settings: Json = {"pseudopotentials": given.by_element("fp_pp_files")}
    if source == "fp_incar":
        settings["input"] = given.file(source)
    else:
        settings["keywords"] = given.mapping(source)
    if "fp_orb_files" in given.values:
        settings["orbitals"] = given.by_element("fp_orb_files")
    if "fp_kpt_file" in given.values:
        settings["kpt"] = given.file("fp_kpt_file")
    if "k_points" in given.values:
        settings["kpoints"] = given.values["k_points"]
    return {"code": "abacus", "settings": settings}


ABACUS = Style(
    keys=(
        *_pseudo(),
        mapped("fp_orb_files", "labels.settings.orbitals, by element"),
        mapped("fp_incar", "labels.settings.input, the file's text"),
        mapped("fp_kpt_file", "labels.settings.kpt, the file's text"),
        refused("fp_dpks_descriptor", "DeePKS labels are not made; drop it"),
        mapped("user_fp_params", "labels.settings.keywords"),
        mapped("k_points", "labels.settings.kpoints"),
    ),
    read=_abacus,
)


def _siesta(given: Given) -> Json:
    params = given.mapping("fp_params")
    keywords = {SIESTA_KEYWORDS[k]: v for k, v in params.items() if k in SIESTA_KEYWORDS}
    settings: Json = {
        "pseudopotentials": given.by_element("fp_pp_files"),
        "keywords": keywords,
        "kspacing": params.get("kspacing"),
    }
    return {"code": "siesta", "settings": settings}


SIESTA_KEYWORDS = {
    "ecut": "MeshCutoff",
    "ediff": "DM.Tolerance",
    "mixingWeight": "DM.MixingWeight",
    "NumberPulay": "DM.NumberPulay",
}
SIESTA = Style(
    keys=(*CLUSTERS[:2], *_pseudo(), mapped("fp_params", "labels.settings")),
    params=(
        *(mapped(k, f"labels.settings.keywords.{v}") for k, v in SIESTA_KEYWORDS.items()),
        mapped("kspacing", "labels.settings.kspacing, 1/Å"),
    ),
    read=_siesta,
)


def _pwmat(given: Given) -> Json:
    source = given.first("fp_incar", "user_fp_params", "fp_params")
    settings: Json = {"pseudopotentials": given.by_element("fp_pp_files")}
    if source == "fp_incar":
        return {"code": "pwmat", "settings": settings | {"template": given.file(source)}}
    return {"code": "pwmat", "settings": settings | {"keywords": given.mapping(source)}}


PWMAT = Style(
    keys=(
        *_pseudo(),
        mapped("fp_incar", "labels.settings.template, the file's text"),
        mapped("user_fp_params", "labels.settings.keywords"),
        mapped("fp_params", "labels.settings.keywords"),
    ),
    read=_pwmat,
)


def _custom(given: Given) -> Json:
    params = given.mapping("fp_params")
    missing = [key for key in CUSTOM_KEYS if key not in params]
    if missing:
        raise SpecError(f"fp_params.{missing[0]}: missing; fp_style custom needs it")
    settings = {ours: params[theirs] for theirs, ours in CUSTOM_KEYS.items()}
    return {"code": "custom", "settings": settings}


CUSTOM_KEYS = {
    "input_fmt": "input_format",
    "input_fn": "input_file",
    "output_fmt": "output_format",
    "output_fn": "output_file",
}
CUSTOM = Style(
    keys=(mapped("fp_params", "labels.settings"),),
    params=tuple(mapped(k, f"labels.settings.{v}") for k, v in CUSTOM_KEYS.items()),
    read=_custom,
)

STYLES: dict[str, Style] = {
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
    "cpx": "Car–Parrinello dynamics gives no single points; label with pwscf",
    "amber/diff": "differences between two levels are not labelled; only with Amber",
}
"""Styles of DP-GEN that nothing here stands in for."""
