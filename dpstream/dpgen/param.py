"""Converts a DP-GEN param file to a campaign that runs as in DP-GEN: lockstep, each job once and
in order, random selection, no audit.

`convert` accounts for every key, validates the values, and builds the spec section by section. What
cannot be the same as in DP-GEN is collected as `differences` for the user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import glob
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from dpstream.dpgen.fp_style import FpParam, Json
from dpstream.dpgen.gromacs import DIFFERENCES as GROMACS_DIFFERENCES
from dpstream.dpgen.gromacs import (
    GROMACS_JOB,
    GROMACS_PARAM,
    SETTINGS,
    GromacsFolder,
    charge_of,
    read_folder,
    structures,
    with_cells,
)
from dpstream.dpgen.key_table import Key, KeyLine, account
from dpstream.dpgen.keys import ENGINES, PARAM
from dpstream.dpgen.labels import STYLE_KEYS, check_style, keys_of, read_labels, relabelled
from dpstream.dpgen.param_model import RunParam
from dpstream.dpgen.stages import (
    CARRIERS,
    Jobs,
    checks,
    electrons_of,
    expanded,
    jobs_left,
    read_stages,
    system_name,
)
from dpstream.dpgen.templates import account_job, template_differences
from dpstream.dpgen.training import read_training
from dpstream.inputs.reading.ase_files import POSCAR_FORMS
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import shown, validated

ASE_KNOWS = re.compile(r"POSCAR|CONTCAR|\.vasp$")
"""File names that ASE reads as POSCAR without a format."""


@dataclass(frozen=True)
class Converted:
    """A converted param file. `document`: the spec; `lines`: what each key became; `differences`:
    what differs from DP-GEN, for the user."""

    document: Json
    lines: tuple[KeyLine, ...]
    differences: tuple[str, ...]

    @property
    def labels(self) -> int:
        return int(self.document["budget"]["labels"])


@dataclass(frozen=True)
class Places:
    """Converts paths of a param file in `folder` to paths of a spec in `target`."""

    folder: Path
    target: Path

    def place(self, path: str, prefix: str = "") -> str:
        """`prefix/path` relative to the spec's folder; absolute if it is outside."""
        whole = os.path.normpath(self.folder.absolute() / Path(prefix).expanduser() / path)
        relative = os.path.relpath(whole, self.target.absolute())
        return whole if relative.startswith("..") else relative

    def folders(self, pattern: str, prefix: str) -> list[tuple[str, Path]]:
        """The sorted folders that match a pattern, as `place` gives them and absolute."""
        whole = self.folder.absolute() / Path(prefix).expanduser() / pattern
        return [(self.place(path), Path(path)) for path in sorted(glob(str(whole)))]

    def matching(self, pattern: str) -> list[str]:
        """The sorted paths that match a pattern of the file. Raises `SpecError` if none do."""
        paths = sorted(glob(str(self.folder.absolute() / Path(pattern).expanduser())))
        if not paths:
            raise SpecError(f"{pattern!r}: no such file or folder")
        return [self.place(path) for path in paths]


@dataclass(frozen=True)
class Begun:
    """The state of an existing DP-GEN run: number of finished jobs, folders with labels, and
    `notes` for the user."""

    jobs: int = 0
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def convert(
    values: Mapping[str, Any], name: str, places: Places, code: str | None, begun: Begun
) -> Converted:
    """Convert the `values` of a param file to a campaign `name` that continues from `begun`.

    `code`: labeling code, with its defaults, that replaces fp_style. Raises `SpecError` with one
    line naming the key.
    """
    style = {key: value for key, value in values.items() if key in STYLE_KEYS and key not in OWN}
    _check_engine(values.get("model_devi_engine"))
    if code is None:
        check_style(values)
    own = {key: value for key, value in values.items() if key not in style}
    lines = account(own, _table(values), elsewhere=keys_of(values))
    lines += _account_jobs(values)
    if _by_gromacs(values) and isinstance(values.get("gromacs_settings"), dict):
        lines += account(values["gromacs_settings"], SETTINGS, "gromacs_settings.")
    param = validated(RunParam, dict(values))
    given = FpParam(values, param.type_map, places.place)
    labels, more = relabelled(code, style) if code else read_labels(given, style)
    document, differences = _document(param, name, places, labels, begun)
    notes = (*dict.fromkeys(differences), *begun.notes, *ALWAYS)
    return Converted(document, (*lines, *more), notes)


def _table(values: Mapping[str, Any]) -> list[Key]:
    """The keys of a param file, with those of GROMACS if it is the engine."""
    own = {key.name: key for key in GROMACS_PARAM} if _by_gromacs(values) else {}
    return [own.get(key.name, key) for key in PARAM]


def _by_gromacs(values: Mapping[str, Any]) -> bool:
    return values.get("model_devi_engine") == "gromacs"


def _check_engine(name: Any) -> None:
    if name not in (None, "lammps", "gromacs"):  # null is DP-GEN's default, too
        raise SpecError(
            f"model_devi_engine: {name!r}: {ENGINES.get(name) or 'must be lammps or gromacs'}"
        )


def _document(
    param: RunParam, name: str, places: Places, labels: Json, begun: Begun
) -> tuple[Json, list[str]]:
    """The spec, and what differs from DP-GEN."""
    jobs = jobs_left(param, begun.jobs)
    differences = template_differences(param, jobs)
    if not jobs:
        raise SpecError(f"--from-run: all {begun.jobs} jobs are done; add to model_devi_jobs")
    folders: dict[str, GromacsFolder] = {}
    if param.model_devi_engine == "gromacs":
        param, cells = with_cells(param, labels)
        differences += [*GROMACS_DIFFERENCES, *filter(None, [cells])]
        used = sorted({index for number, job in jobs for index in expanded(job, number)})
        folders = {system_name(i): read_folder(param, i, places.folders) for i in used}
    if param.shuffle_poscar and not folders:
        differences.append(SHUFFLED)
    data = [places.place(path, param.init_data_prefix) for path in param.init_data_sys]
    document = {
        "name": name,
        "mode": "lockstep",
        "type_map": param.type_map,
        "systems": _systems(param, jobs, places, differences),
        "initial": {"data": [*data, *begun.labels]},
        "training": read_training(param, places.place, places.matching, differences),
        "md": _md(param),
        "stages": read_stages(param, jobs, places.place, folders),
        "selection": _selection(param, jobs, differences),
        "labels": labels | _electrons(param),
        "audit": {"per_round": 0},
        "convergence": {"max_rejected": param.ratio_failed},
        "budget": {"labels": sum(_labels_of(param, jobs))},
        "verification": {"nve_ps": 0.0},
    }
    return document, differences


OWN = {key.name for key in PARAM}
SHUFFLED = "shuffle_poscar: each structure is shuffled once; DP-GEN does it again in each job"
ALWAYS = (
    "a frame that is failed by its force deviation and candidate by its virial deviation (or vice "
    "versa) counts as failed; DP-GEN counts it as candidate",
    "the first frame of a trajectory (step 0) is not judged",
    "frames with atoms too close or cells too skewed are not drawn (selection.min_distance, "
    "max_skew)",
    "every new label is trained on, also if a system has fewer than fp_task_min of them; DP-GEN "
    "leaves these out",
    "after the last job one final model is trained on all labels, in addition to the committee",
)


def _account_jobs(values: Mapping[str, Any]) -> list[KeyLine]:
    """One line per key and fate, with the value from the first job that has the key."""
    lines: dict[tuple[str, str], KeyLine] = {}
    with_plumed = bool(values.get("model_devi_plumed"))
    own = GROMACS_JOB if _by_gromacs(values) else ()
    for number, job in enumerate(_jobs(values)):
        for line in account_job(job, f"model_devi_jobs.{number}.", with_plumed, own):
            key = line.key.replace(f".{number}.", "[].", 1)
            lines.setdefault((key, line.words), replace(line, key=key))
    return list(lines.values())


def _jobs(values: Mapping[str, Any]) -> list[Json]:
    jobs = values.get("model_devi_jobs")
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise SpecError(f"model_devi_jobs: {shown(jobs)}: must be a list of mappings")
    return jobs


# ------------------------------------------------------------------------------------------ systems


def _systems(param: RunParam, jobs: Jobs, places: Places, differences: list[str]) -> Json:
    """The systems that the jobs explore."""
    used = {index for number, job in jobs for index in expanded(job, number)}
    idle = [str(i) for i in range(len(param.sys_configs)) if i not in used]
    if idle:
        differences.append(f"sys_configs: {', '.join(idle)}: omitted, because no job explores them")
    return {
        system_name(index): _system(param, patterns, places)
        | electrons_of(param, jobs, index)
        | (charge_of(param, index) if param.model_devi_engine == "gromacs" else {})
        for index, patterns in enumerate(param.sys_configs)
        if index in used
    }


def _system(param: RunParam, patterns: list[str], places: Places) -> Json:
    # DP-GEN's `**` is a `*`; in a spec it stands for any number of folders.
    patterns = [re.sub(r"\*\*+", "*", pattern) for pattern in patterns]
    paths = [places.place(pattern, param.sys_configs_prefix) for pattern in patterns]
    if param.model_devi_engine == "gromacs":
        return {
            "structures": structures(param, paths),
            **({"periodic": False} if param.model_devi_nopbc else {}),
        }
    known = all(ASE_KNOWS.search(Path(path).name) for path in paths)
    plain = param.sys_format in POSCAR_FORMS and known
    return {
        "structures": paths,
        **({"periodic": False} if param.model_devi_nopbc else {}),
        **({"shuffle": True} if param.shuffle_poscar else {}),
        **({} if plain else {"format": param.sys_format}),
    }


def _electrons(param: RunParam) -> Json:
    carrier = CARRIERS.get(param.use_ele_temp)
    return {} if carrier is None else {"electron_temperature": carrier}


def _md(param: RunParam) -> Json:
    md: Json = {
        "timestep": param.model_devi_dt,
        "tau_t": param.model_devi_taut,
        "tau_p": param.model_devi_taup,
    }
    if param.model_devi_skip:
        md["skip"] = param.model_devi_skip
    return md | _masses(param)


def _masses(param: RunParam) -> Json:
    masses = param.mass_map
    if isinstance(masses, str):
        if masses != "auto":
            raise SpecError(f"mass_map: {masses!r}: must be auto or a list of masses, amu")
        return {}
    if len(masses) != len(param.type_map):
        raise SpecError(
            f"mass_map: {len(masses)} masses for {len(param.type_map)} elements; give one for each"
        )
    return {"masses": dict(zip(param.type_map, masses, strict=True))}


# ---------------------------------------------------------------------------------------- selection


def _selection(param: RunParam, jobs: Jobs, differences: list[str]) -> Json:
    return {
        "policy": "uniform",
        "per_round": max(_labels_of(param, jobs)),
        "per_system": param.fp_task_max,
        "min_per_system": param.fp_task_min,
        "per_trajectory": max(checks(job) * (job.nbeads or 1) for _, job in jobs),
        "min_separation": 0.0,
        "time_bins": 1,
        **_thresholds(param),
        **_adapted(param),
        **_clusters(param, differences),
        **_bad_box(param, differences),
    }


def _labels_of(param: RunParam, jobs: Jobs) -> list[int]:
    """Largest number of labels per job."""
    return [param.fp_task_max * len(expanded(job, number)) for number, job in jobs]


def _thresholds(param: RunParam) -> Json:
    full, soft = param.fp_accurate_threshold, param.fp_accurate_soft_threshold
    if soft is not None:
        return {"none_above": 1.0 if full is None else full, "fewer_above": soft}
    return {} if full is None else {"none_above": full}


def _adapted(param: RunParam) -> Json:
    """The candidates of DP-GEN's adaptive lower trust level: a number or share of the frames of
    each system that are not failed."""
    if not param.model_devi_adapt_trust_lo:
        return {}
    if param.fp_accurate_threshold is not None or param.fp_accurate_soft_threshold is not None:
        raise SpecError(
            "fp_accurate_threshold: not supported with model_devi_adapt_trust_lo, which makes the "
            "accurate share a constant; remove one"
        )
    count, share = param.model_devi_numb_candi_f, param.model_devi_perc_candi_f / 100
    if not count and not share:
        raise SpecError(
            "model_devi_numb_candi_f: 0: model_devi_adapt_trust_lo requires it or "
            "model_devi_perc_candi_f"
        )
    return ({"pool_size": count} if count else {}) | ({"pool_share": share} if share else {})


def _clusters(param: RunParam, differences: list[str]) -> Json:
    if not param.use_clusters:
        return {}
    if param.cluster_cutoff is None:
        raise SpecError("cluster_cutoff: missing; use_clusters requires it")
    differences.append(
        "use_clusters: a chosen frame gives one cluster, around the atom with the largest "
        "deviation, and a frame with a failed atom is failed; DP-GEN draws among candidate atoms"
    )
    if param.cluster_minify:
        differences.append("cluster_minify: molecules are kept whole, so clusters may be larger")
    return {"clusters": {"radius": param.cluster_cutoff}}


def _bad_box(param: RunParam, differences: list[str]) -> Json:
    """Convert the criteria of fp_skip_bad_box, e.g. `length_ratio:3;min_distance:1.0`."""
    given = dict(_criterion(part) for part in (param.fp_skip_bad_box or "").split(";") if part)
    rules: Json = {}
    shortest = given.pop("min_distance", given.pop("min_dist", None))
    if shortest is not None:
        pairs = combinations_with_replacement(param.type_map, 2)
        rules["min_distance"] = {f"{a}-{b}": shortest for a, b in pairs}
    if "tilt_ratio" in given:
        rules["max_skew"] = given.pop("tilt_ratio")
    if given:
        differences.append(
            f"fp_skip_bad_box: {', '.join(given)}: not used; selection.max_skew limits the "
            "shape of cells"
        )
    return rules


def _criterion(part: str) -> tuple[str, float]:
    name, _, value = part.partition(":")
    known = ("length_ratio", "height_ratio", "wrap_ratio", "tilt_ratio", "min_distance", "min_dist")
    try:
        number = float(value)
    except ValueError:
        raise SpecError(f"fp_skip_bad_box: {part!r}: must be name:number") from None
    if name.strip() not in known:
        raise SpecError(f"fp_skip_bad_box: {name!r}: must be one of {', '.join(known)}")
    return name.strip(), number
