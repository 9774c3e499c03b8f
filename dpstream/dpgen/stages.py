"""From model_devi_jobs to stages, and from their trust levels to ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpstream.dpgen.values import Job, Param, PerSystem
from shared.errors import SpecError

Json = dict[str, Any]

ENSEMBLES = {
    "nve": "nve",
    "nvt": "nvt",
    "npt": "npt-iso",
    "npt-i": "npt-iso",
    "npt-iso": "npt-iso",
    "npt-a": "npt-aniso",
    "npt-aniso": "npt-aniso",
    "npt-t": "npt-tri",
    "npt-tri": "npt-tri",
}
NOT_JUDGED = 1e9
"""A virial level from here on means none; DP-GEN's default is 1e10."""


def system_name(index: int) -> str:
    return f"sys-{index:03d}"


def expanded(job: Job, number: int) -> list[int]:
    """The indices of sys_idx, ranges such as `0-4:2` written out without their end, as there."""
    where = f"model_devi_jobs.{number}"
    found: list[int] = []
    for item in job.sys_idx:
        found += [item] if isinstance(item, int) else _range(item, where)
    if len(set(found)) != len(found):
        raise SpecError(f"{where}.sys_idx: {found}: a system is listed twice")
    return found


def _range(text: str, where: str) -> Sequence[int]:
    span, _, step = text.partition(":")
    first, _, end = span.partition("-")
    try:
        return range(int(first), int(end), int(step or 1))
    except ValueError:
        raise SpecError(
            f"{where}.sys_idx: {text!r}: should be a number or a range such as 0-4:2"
        ) from None


def read_stages(param: Param, done: int) -> list[Json]:
    """One stage for each job but the first `done`, in order, explored once from every structure."""
    return [_stage(param, job, number) for number, job in jobs_left(param, done)]


def jobs_left(param: Param, done: int) -> list[tuple[int, Job]]:
    """Jobs with their numbers."""
    return list(enumerate(param.model_devi_jobs))[done:]


def _stage(param: Param, job: Job, number: int) -> Json:
    where = f"model_devi_jobs.{number}"
    systems = expanded(job, number)
    last = len(param.sys_configs) - 1
    for index in systems:
        if not 0 <= index <= last:
            raise SpecError(f"{where}.sys_idx: {index}: sys_configs has entries 0 to {last}")
    if job.temps is None:
        raise SpecError(f"{where}.temps: missing")
    ensemble = _ensemble(job, where)
    barostat = ensemble.startswith("npt")
    if barostat and param.model_devi_nopbc:
        raise SpecError(f"{where}.ensemble: {job.ensemble!r}: model_devi_nopbc has no pressure")
    return {
        "name": f"job-{number:03d}",
        "systems": [system_name(index) for index in systems],
        "temperatures": job.temps,
        **({"pressures": job.press} if barostat else {}),
        "md": _md(job, ensemble),
        **_trust(param, job, systems, where),
        "starts": "all",
        "repeat": False,
    }


def _ensemble(job: Job, where: str) -> str:
    if job.ensemble not in ENSEMBLES:
        raise SpecError(
            f"{where}.ensemble: {job.ensemble!r}: should be one of {', '.join(ENSEMBLES)}"
        )
    return ENSEMBLES[job.ensemble]


def _md(job: Job, ensemble: str) -> Json:
    own = {"timestep": job.dt, "tau_t": job.taut, "tau_p": job.taup}
    return {
        "ensemble": ensemble,
        "steps": job.nsteps,
        "every": job.trj_freq,
        "stop_after": max(1, job.nsteps // job.trj_freq),
        **{key: value for key, value in own.items() if value is not None},
    }


# ------------------------------------------------------------------------------------ trust levels


def _trust(param: Param, job: Job, systems: Sequence[int], where: str) -> Json:
    """One `trust`, and `system_trust` where the systems differ."""
    levels = {index: _levels(param, job, index, where) for index in systems}
    first = levels[systems[0]]
    if all(other == first for other in levels.values()):
        return {"trust": first}
    named = {system_name(index): own for index, own in levels.items()}
    return {"trust": first, "system_trust": named}


def _levels(param: Param, job: Job, index: int, where: str) -> Json:
    low, high, low_v, high_v = (
        _level(param, job, f"model_devi_{name}", index, where)
        for name in ("f_trust_lo", "f_trust_hi", "v_trust_lo", "v_trust_hi")
    )
    levels = {"low": low, "high": high}
    if min(low_v, high_v) < NOT_JUDGED:
        levels |= {"low_v": low_v, "high_v": high_v}
    if param.use_relative:
        levels["relative"] = _given(param.epsilon, "epsilon", "use_relative")
    if param.use_relative_v:
        levels["relative_v"] = _given(param.epsilon_v, "epsilon_v", "use_relative_v")
    return levels


def _level(param: Param, job: Job, key: str, index: int, where: str) -> float:
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
        raise SpecError(f"{key}: has no level for system {index}") from None


def _given(value: float | None, key: str, because: str) -> float:
    if value is None:
        raise SpecError(f"{key}: missing; {because} needs it")
    return value
