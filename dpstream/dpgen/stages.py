"""Converts model_devi_jobs to stages with their trust levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dpstream.dpgen.fp_style import Json
from dpstream.dpgen.gromacs import GromacsFolder, completed, read_gromacs
from dpstream.dpgen.param_model import ModelDeviJob, PerSystem, RunParam
from dpstream.dpgen.templates import read_engine, settled
from dpstream.shared.errors import SpecError

Jobs = Sequence[tuple[int, ModelDeviJob]]
"""Jobs with their numbers in the file."""

ENSEMBLES = {
    **{name: name for name in ("nve", "nvt")},
    **dict.fromkeys(("npt", "npt-i", "npt-iso"), "npt-iso"),
    **dict.fromkeys(("npt-a", "npt-aniso"), "npt-aniso"),
    **dict.fromkeys(("npt-t", "npt-tri"), "npt-tri"),
}
CARRIERS = {1: "fparam", 2: "aparam"}
"""The parameter that holds the electron temperature, by DP-GEN's use_ele_temp."""
NOT_JUDGED = 1e9
"""Virial levels from here on mean that the virial is not judged; DP-GEN's default is 1e10."""


def system_name(index: int) -> str:
    return f"sys-{index:03d}"


def expanded(job: ModelDeviJob, number: int) -> list[int]:
    """The indices of sys_idx with ranges such as `0-4:2` expanded; the end is excluded, as in
    DP-GEN. Raises `SpecError`."""
    where = f"model_devi_jobs.{number}"
    indices: list[int] = []
    for item in job.sys_idx:
        indices += [item] if isinstance(item, int) else _range(item, where)
    if len(set(indices)) != len(indices):
        raise SpecError(f"{where}.sys_idx: {indices}: lists a system twice")
    return indices


def _range(text: str, where: str) -> Sequence[int]:
    span, _, step = text.partition(":")
    first, _, end = span.partition("-")
    try:
        return range(int(first), int(end), int(step or 1))
    except ValueError:
        raise SpecError(
            f"{where}.sys_idx: {text!r}: must be a number or a range such as 0-4:2"
        ) from None


def read_stages(
    param: RunParam,
    jobs: Jobs,
    place: Callable[[str], str],
    folders: Mapping[str, GromacsFolder],
) -> list[Json]:
    """One stage per job, in order, each explored once from every structure. `folders`: of systems
    that GROMACS moves, by name."""
    return [_stage(param, job, number, place, folders) for number, job in jobs]


def jobs_left(param: RunParam, done: int) -> Jobs:
    """The jobs after the first `done`, with steps and temperatures from templates if any."""
    return [
        (
            number,
            settled(_filled(param, job), _systems(param, job, number), f"model_devi_jobs.{number}"),
        )
        for number, job in list(enumerate(param.model_devi_jobs))[done:]
    ]


def _filled(param: RunParam, job: ModelDeviJob) -> ModelDeviJob:
    return completed(job) if param.model_devi_engine == "gromacs" else job


def _systems(param: RunParam, job: ModelDeviJob, number: int) -> list[int]:
    systems, last = expanded(job, number), len(param.sys_configs) - 1
    for index in systems:
        if not 0 <= index <= last:
            raise SpecError(
                f"model_devi_jobs.{number}.sys_idx: {index}: sys_configs has entries 0 to {last}"
            )
    return systems


def _stage(
    param: RunParam,
    job: ModelDeviJob,
    number: int,
    place: Callable[[str], str],
    folders: Mapping[str, GromacsFolder],
) -> Json:
    where = f"model_devi_jobs.{number}"
    systems = expanded(job, number)
    if folders:
        how = _by_gromacs(param, job, {n: folders[n] for n in map(system_name, systems)}, where)
    elif job.template is None:
        how = _native(param, job, where)
    else:
        how = _own(param, job, systems, place, where)
    return {
        "name": f"job-{number:03d}",
        "systems": [system_name(index) for index in systems],
        **_temperatures(param, job, where),
        **how,
        **_trust(param, job, systems, where),
        "starts": "all",
        "repeat": False,
    }


def _by_gromacs(
    param: RunParam, job: ModelDeviJob, folders: Mapping[str, GromacsFolder], where: str
) -> Json:
    if job.template is not None or job.nbeads is not None or param.use_ele_temp:
        raise SpecError(
            f"{where}: template, nbeads and use_ele_temp do not go with model_devi_engine gromacs; "
            "remove them"
        )
    engine, given = read_gromacs(param, folders, where)
    md = _steps(job) | {"ensemble": given.pop("ensemble")}
    return {"engine": engine, "md": md, **given}


def _temperatures(param: RunParam, job: ModelDeviJob, where: str) -> Json:
    """Temperatures of atoms and, with use_ele_temp, of electrons; a single number is used for
    both."""
    assert job.temps is not None
    pairs = [each if isinstance(each, tuple) else (each, each) for each in job.temps]
    ions, electrons = ([pair[i] for pair in pairs] for i in (0, 1))
    if param.use_ele_temp:
        return {"temperatures": ions, "electron_temperatures": electrons}
    if electrons != ions:
        raise SpecError(f"{where}.temps: {job.temps}: pairs require use_ele_temp: 1 or 2")
    return {"temperatures": ions}


def electrons_of(param: RunParam, jobs: Jobs, system: int) -> Json:
    """The electron temperature of a system's starting structures: the first of the first job that
    explores it."""
    if not param.use_ele_temp:
        return {}
    number, job = next((n, job) for n, job in jobs if system in expanded(job, n))
    temperatures = _temperatures(param, job, f"model_devi_jobs.{number}")
    return {CARRIERS[param.use_ele_temp]: temperatures["electron_temperatures"][:1]}


def _native(param: RunParam, job: ModelDeviJob, where: str) -> Json:
    if param.model_devi_plumed:
        raise SpecError(f"{where}.template: missing; model_devi_plumed requires its lmp and plm")
    ensemble = _ensemble(job, where)
    barostat = ensemble.startswith("npt")
    if barostat and param.model_devi_nopbc:
        raise SpecError(f"{where}.ensemble: {job.ensemble!r}: not allowed with model_devi_nopbc")
    damping = {"tau_t": job.taut, "tau_p": job.taup}
    return {
        **_beads(job, where),
        **({"pressures": job.press} if barostat else {}),
        "md": {
            "ensemble": ensemble,
            **_steps(job),
            **{key: value for key, value in damping.items() if value is not None},
        },
    }


def _beads(job: ModelDeviJob, where: str) -> Json:
    """The path-integral engine. nsteps must be a multiple of trj_freq, as in DP-GEN."""
    if job.nbeads is None:
        return {}
    assert job.nsteps is not None
    if job.nsteps % job.trj_freq:
        raise SpecError(
            f"{where}.nsteps: {job.nsteps}: must be a multiple of trj_freq ({job.trj_freq}) "
            "with nbeads"
        )
    return {"engine": {"kind": "pimd", "beads": job.nbeads}}


def _own(
    param: RunParam,
    job: ModelDeviJob,
    systems: Sequence[int],
    place: Callable[[str], str],
    where: str,
) -> Json:
    """A stage with the job's own LAMMPS input."""
    if job.nbeads is not None:
        raise SpecError(f"{where}.nbeads: not supported together with a template; remove one")
    if param.use_ele_temp:
        raise SpecError(
            f"{where}.template: DP-GEN ignores use_ele_temp in labels of jobs with a template; set "
            "engine: {kind: template, …} and electron_temperatures in the imported spec instead"
        )
    named = {index: system_name(index) for index in systems}
    engine = read_engine(job, param.model_devi_plumed, place, named, where)
    return {"engine": engine, "md": _steps(job)}


def _ensemble(job: ModelDeviJob, where: str) -> str:
    if job.ensemble is None:
        raise SpecError(f"{where}.ensemble: missing")
    if job.ensemble not in ENSEMBLES:
        raise SpecError(
            f"{where}.ensemble: {job.ensemble!r}: must be one of {', '.join(ENSEMBLES)}"
        )
    return ENSEMBLES[job.ensemble]


def _steps(job: ModelDeviJob) -> Json:
    return {
        "steps": job.nsteps,
        "every": job.trj_freq,
        "stop_after": checks(job),
        **({} if job.dt is None else {"timestep": job.dt}),
    }


def checks(job: ModelDeviJob) -> int:
    """Number of deviation checks per trajectory of the job."""
    assert job.nsteps is not None
    return max(1, job.nsteps // job.trj_freq)


# ------------------------------------------------------------------------------------ trust levels


def _trust(param: RunParam, job: ModelDeviJob, systems: Sequence[int], where: str) -> Json:
    """One `trust`, and `system_trust` if the levels of the systems differ."""
    levels = {index: _levels(param, job, index, where) for index in systems}
    first = levels[systems[0]]
    if all(other == first for other in levels.values()):
        return {"trust": first}
    named = {system_name(index): own for index, own in levels.items()}
    return {"trust": first, "system_trust": named}


def _levels(param: RunParam, job: ModelDeviJob, index: int, where: str) -> Json:
    low, high, low_v, high_v = (
        _level(param, job, f"model_devi_{name}", index, where)
        for name in ("f_trust_lo", "f_trust_hi", "v_trust_lo", "v_trust_hi")
    )
    if param.model_devi_adapt_trust_lo:
        low, low_v = 0.0, min(low_v, high_v / 2)
    levels = {"low": low, "high": high}
    if min(low_v, high_v) < NOT_JUDGED:
        levels |= {"low_v": low_v, "high_v": high_v}
    if param.use_relative:
        levels["relative"] = _required(param.epsilon, "epsilon", "use_relative")
    if param.use_relative_v:
        levels["relative_v"] = _required(param.epsilon_v, "epsilon_v", "use_relative_v")
    return levels


def _level(param: RunParam, job: ModelDeviJob, key: str, index: int, where: str) -> float:
    own: PerSystem | None = getattr(job, key)
    if own is None:
        return _of_system(getattr(param, key), index, key)
    return _of_system(own, index, f"{where}.{key}")


def _of_system(value: PerSystem, index: int, key: str) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return value[str(index)] if isinstance(value, dict) else value[index]
    except (KeyError, IndexError):
        raise SpecError(f"{key}: no level for system {index}; give one per system") from None


def _required(value: float | None, key: str, because: str) -> float:
    if value is None:
        raise SpecError(f"{key}: missing; {because} requires it")
    return value
