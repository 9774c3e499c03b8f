"""Converts `model_devi_engine: gromacs` to stages with the engine `gromacs`.

Each system of DP-GEN is a folder with run parameters, topology and coordinates. Steps, time step
and temperature come from the job; thermostat, barostat and pressure from the run parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpstream.dpgen.fp_style import Json
from dpstream.dpgen.key_table import Key, mapped, unused
from dpstream.dpgen.param_model import GromacsFiles, ModelDeviJob, RunParam
from dpstream.services.explorer.gromacs.inputs import ensemble_of, parameters, pressure_of
from dpstream.services.labeler.codes import CODES
from dpstream.shared.errors import SpecError, errors_at

GROMACS_PARAM: tuple[Key, ...] = (
    mapped("gromacs_settings", "stages[].engine, kind: gromacs"),
    mapped("sys_charges", "systems.*.label.charge"),
    mapped("model_devi_nopbc", "systems.*.periodic: false, if the labels are of whole molecules"),
)
OWN_FIELD = "GROMACS runs with its own force field"
GROMACS_JOB: tuple[Key, ...] = (
    *(unused(name, "mdp_filename sets thermostat and barostat") for name in ("ensemble", "ens")),
    *(unused(name, "the pressure is ref-p in mdp_filename") for name in ("press", "Ps")),
    *(unused(name, "the damping is tau-t and tau-p in mdp_filename") for name in ("taut", "taup")),
    unused("lambdas", OWN_FIELD),
    unused("restart_from_iter", "DP-GEN does not use it either"),
)
"""Keys of `model_devi_engine: gromacs` that other engines ignore or use otherwise."""
SETTINGS: tuple[Key, ...] = (
    mapped("mdp_filename", "stages[].engine.mdp"),
    mapped("topol_filename", "stages[].engine.topologies, by system"),
    mapped("conf_filename", "systems.*.structures"),
    mapped("type_filename", "stages[].engine.elements, by the names of atoms in conf_filename"),
    mapped("maxwarn", "stages[].engine.max_warnings"),
    *(
        unused(name, "whole systems are judged and labelled")
        for name in ("index_filename", "ndx_filename", "group_name")
    ),
    *(
        unused(name, "dpstream names the files of a trajectory")
        for name in ("ref_filename", "traj_filename", "deffnm", "model_devi_script")
    ),
)
DIFFERENCES = (
    "model_devi_engine gromacs: GROMACS moves atoms with the force field of the topology, without "
    "the models; the GROMACS of DP-GEN has an interface to DeePMD-kit",
    "gromacs_settings.group_name: whole systems are judged and labelled, not a group of atoms",
)
IN_CELL = (
    "model_devi_nopbc: not used with model_devi_engine gromacs, as in DP-GEN: GROMACS runs in the "
    "cell of conf_filename"
)
IN_VACUUM = (
    "model_devi_nopbc: GROMACS moves, and the code labels, molecules in vacuum, because {code} "
    "computes no periodic frames; DP-GEN runs GROMACS in the cell of conf_filename"
)
DEFAULT_TEMPERATURE = 298.0
"""K, that of DP-GEN."""
PARTS = slice(10, 15)
"""Columns of an atom's name in a `.gro` file."""


@dataclass(frozen=True)
class GromacsFolder:
    """The files of one system, with texts, and paths relative to the spec."""

    mdp: str
    topology: str
    mdp_text: str
    elements: Mapping[str, str]


Find = Callable[[str, str], list[tuple[str, Path]]]
"""`find(pattern, prefix)`: the folders that match, relative to the spec and absolute."""


def completed(job: ModelDeviJob) -> ModelDeviJob:
    """The job with DP-GEN's default of the temperature with GROMACS."""
    return job if job.temps is not None else job.model_copy(update={"temps": [DEFAULT_TEMPERATURE]})


def with_cells(param: RunParam, labels: Json) -> tuple[RunParam, str | None]:
    """The param file with `model_devi_nopbc` only if the code of `labels` cannot label frames with
    a cell, and what to tell the user. DP-GEN reads the key with the engine lammps only."""
    if not param.model_devi_nopbc:
        return param, None
    code = CODES.get(labels["code"])
    if param.use_clusters or code is None or code.periodic:
        return param.model_copy(update={"model_devi_nopbc": False}), IN_CELL
    return param, IN_VACUUM.format(code=code.name)


def structures(param: RunParam, paths: Sequence[str]) -> list[str]:
    """The coordinates in the folders of a system."""
    return [f"{path.rstrip('/')}/{param.gromacs_settings.conf_filename}" for path in paths]


def charge_of(param: RunParam, index: int) -> Json:
    """The charge of a system, from sys_charges."""
    if param.sys_charges is None:
        return {}
    if len(param.sys_charges) != len(param.sys_configs):
        raise SpecError(
            f"sys_charges: {len(param.sys_charges)} for {len(param.sys_configs)} sys_configs; "
            "give one for each"
        )
    return {"label": {"charge": param.sys_charges[index]}}


def read_folder(param: RunParam, index: int, find: Find) -> GromacsFolder:
    """The files of a system, the same in all its folders. Raises `SpecError`."""
    patterns, prefix = param.sys_configs[index], param.sys_configs_prefix
    places = [place for pattern in patterns for place in find(pattern, prefix)]
    if not places:
        raise SpecError(f"sys_configs.{index}: {', '.join(patterns)}: no such folder")
    files = param.gromacs_settings
    for name in (files.mdp_filename, files.topol_filename):
        if len({_text(folder / name) for _, folder in places}) > 1:
            raise SpecError(
                f"sys_configs.{index}: {name} differs between its folders; give each its own entry"
            )
    path, folder = places[0]
    return GromacsFolder(
        mdp=f"{path}/{files.mdp_filename}",
        topology=f"{path}/{files.topol_filename}",
        mdp_text=_text(folder / files.mdp_filename),
        elements=_elements(param.type_map, files, folder),
    )


def read_gromacs(
    param: RunParam, folders: Mapping[str, GromacsFolder], where: str
) -> tuple[Json, Json]:
    """The engine of a job that explores the systems `folders`, and the keys `ensemble` of `md` and
    `pressures` of the stage. Raises `SpecError`."""
    first, *others = folders.values()
    if any(other.mdp_text != first.mdp_text for other in others):
        raise SpecError(
            f"{where}.sys_idx: {param.gromacs_settings.mdp_filename} differs between the systems; "
            "split the job"
        )
    elements: dict[str, str] = {}
    for name, symbol in (pair for each in folders.values() for pair in each.elements.items()):
        _add(elements, name, symbol, where)
    engine = {
        "kind": "gromacs",
        "mdp": first.mdp,
        "topologies": {name: each.topology for name, each in folders.items()},
        **({"elements": elements} if elements else {}),
        "max_warnings": param.gromacs_settings.maxwarn,
    }
    given = _ensemble(first)
    if given["ensemble"] == "npt" and param.model_devi_nopbc:
        raise SpecError(
            f"{first.mdp}: pcoupl: a barostat requires a cell, but model_devi_nopbc drops it, "
            "because the labeling code computes molecules only; set pcoupl = no, or choose a code "
            "for periodic frames (--code)"
        )
    return engine, given


def _ensemble(folder: GromacsFolder) -> Json:
    with errors_at(folder.mdp, ValueError):
        given = parameters(folder.mdp_text)
        ensemble = ensemble_of(given)
        pressures = [pressure_of(given)] if ensemble == "npt" else []
    return {"ensemble": ensemble} | ({"pressures": pressures} if pressures else {})


def _elements(type_map: Sequence[str], files: GromacsFiles, folder: Path) -> dict[str, str]:
    """Elements by the names of atoms, if there is a file of types."""
    types = folder / files.type_filename
    if not types.is_file():
        return {}
    numbers = _text(types).split()
    names = list(_names(folder / files.conf_filename))
    if len(numbers) != len(names):
        raise SpecError(
            f"{types}: {len(numbers)} types, but {files.conf_filename} has {len(names)} atoms; "
            "whole systems are judged and labelled, so all atoms need a type"
        )
    found: dict[str, str] = {}
    for name, number in zip(names, numbers, strict=True):
        if not number.isdigit() or int(number) >= len(type_map):
            raise SpecError(f"{types}: {number!r}: must be an index of type_map")
        _add(found, name, type_map[int(number)], str(types))
    return found


def _add(elements: dict[str, str], name: str, symbol: str, where: str) -> None:
    if elements.setdefault(name, symbol) != symbol:
        raise SpecError(
            f"{where}: atoms named {name} are {elements[name]} and {symbol}; rename one of them in "
            "coordinates and topology"
        )


def _names(path: Path) -> Iterator[str]:
    lines = _text(path).splitlines()
    count = lines[1].strip() if len(lines) > 1 else ""
    if not count.isdigit():
        raise SpecError(f"{path}: line 2: {count!r}: must be the number of atoms")
    for line in lines[2 : 2 + int(count)]:
        yield line[PARTS].strip()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error
