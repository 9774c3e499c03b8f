"""Converts a job with its own LAMMPS input to a stage with the engine `template`.

DP-GEN replaces a placeholder by its first value in rev_mat.lmp, sys_rev_mat.*.lmp and, in the
PLUMED input, rev_mat.plm and sys_rev_mat.*.plm. The conversion keeps this order and refuses
contradictions. Steps and temperatures, which DP-GEN takes from placeholders, become the stage's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpstream.dpgen.fp_style import Json
from dpstream.dpgen.key_table import Key, KeyLine, account
from dpstream.dpgen.keys import JOBS, LEFT_TO_TEMPLATE, REVISIONS, TEMPLATE
from dpstream.dpgen.param_model import ModelDeviJob, Revised, RunParam, Words
from dpstream.shared.errors import SpecError

TEMPERATURE = "V_TEMP"
WORDS = {"nsteps": "V_NSTEPS", "temps": TEMPERATURE}
"""Placeholders that have their own key in a stage, by DP-GEN's name of the key."""
FORCES = (
    "template: dpstream sets units, atoms, forces, thermo and dump; only the committee gives forces"
)
NUMBERS = "template.plm: atoms are sorted by element; @H2 is the second hydrogen of a file"


def template_differences(param: RunParam, jobs: Sequence[tuple[int, ModelDeviJob]]) -> list[str]:
    """Differences from DP-GEN that concern templates."""
    if not any(job.template for _, job in jobs):
        return []
    return [FORCES, NUMBERS] if param.model_devi_plumed else [FORCES]


def account_job(
    job: Mapping[str, Any], where: str, with_plumed: bool, more: Sequence[Key] = ()
) -> list[KeyLine]:
    """What each key of a job becomes, including keys of its template and matrices. `more`: what
    keys become with its engine."""
    templated = bool(job.get("template"))
    own = {key.name: key for key in more} | (LEFT_TO_TEMPLATE if templated else {})
    lines = account(job, [own.get(key.name, key) for key in JOBS], where)
    parts = {
        "template": (job.get("template"), TEMPLATE),
        "rev_mat": (job.get("rev_mat"), REVISIONS),
    }
    systems = job.get("sys_rev_mat")
    if isinstance(systems, Mapping):
        parts |= {f"sys_rev_mat.{name}": (value, REVISIONS) for name, value in systems.items()}
    for name, (value, table) in parts.items():
        if isinstance(value, Mapping):
            lines += account(value, _idle(table, with_plumed), f"{where}{name}.")
    return lines


def _idle(table: Sequence[Key], with_plumed: bool) -> list[Key]:
    """`table` with plm marked as unused unless model_devi_plumed is true."""
    off = Key("plm", "unused", "model_devi_plumed is not true")
    return [off if key.name == "plm" and not with_plumed else key for key in table]


def settled(job: ModelDeviJob, systems: Sequence[int], where: str) -> ModelDeviJob:
    """The job with its steps and temperatures, taken from placeholders if it has a template.
    Raises `SpecError` if they are missing, contradictory or different between systems."""
    if job.template is None:
        return _complete(job, where)
    strays = sorted(job.sys_rev_mat.keys() - {str(index) for index in systems})
    if strays:
        raise SpecError(f"{where}.sys_rev_mat: {strays[0]!r} is not in sys_idx; remove it")
    numbers = {key: _values(job, key, systems, where) for key in WORDS}
    steps = _one(numbers["nsteps"], "nsteps", where)
    if steps < 1 or steps % 1:
        raise SpecError(f"{where}.nsteps: {steps:g}: must be a positive integer")
    if TEMPERATURE not in _lammps(job, systems[0]):
        _one(numbers["temps"], "temps", where)
    return job.model_copy(update={"nsteps": int(steps), "temps": numbers["temps"]})


def _complete(job: ModelDeviJob, where: str) -> ModelDeviJob:
    for key in ("temps", "nsteps"):
        if getattr(job, key) is None:
            raise SpecError(f"{where}.{key}: missing")
    for key in ("rev_mat", "sys_rev_mat"):
        if getattr(job, key) not in (Revised(), {}):
            raise SpecError(f"{where}.{key}: allowed only with a template; remove it")
    return job


def _values(job: ModelDeviJob, key: str, systems: Sequence[int], where: str) -> list[float]:
    """The values of `key`: those of its placeholder, which must be the same for all systems, or
    the job's own."""
    word, own = WORDS[key], getattr(job, key)
    named: list[float] = own if isinstance(own, list) else [] if own is None else [own]
    by_system = [_lammps(job, index).get(word) for index in systems]
    if any(values != by_system[0] for values in by_system):
        raise SpecError(
            f"{where}.sys_rev_mat: {word}: differs between the systems of a job; split the job"
        )
    if by_system[0] is None:
        return named
    numbers = _numbers(by_system[0], f"{where}.rev_mat.lmp.{word}")
    if named and numbers != named:
        raise SpecError(
            f"{where}.{key}: {own}: contradicts {word} ({by_system[0]}), which DP-GEN uses; "
            f"remove {key}"
        )
    return numbers


def _lammps(job: ModelDeviJob, index: int) -> Words:
    return {**_own(job, index).lmp, **job.rev_mat.lmp}


def _own(job: ModelDeviJob, index: int) -> Revised:
    return job.sys_rev_mat.get(str(index), Revised())


def _numbers(values: Sequence[Any], where: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise SpecError(f"{where}: {list(values)}: must be numbers")
    return numbers


def _one(values: list[float], key: str, where: str) -> float:
    if not values:
        raise SpecError(f"{where}.{key}: missing; set it, or {WORDS[key]} in rev_mat.lmp")
    if len(values) > 1:
        hint = f", or {TEMPERATURE} in rev_mat.lmp" if key == "temps" else ""
        raise SpecError(f"{where}.{key}: {values}: a template allows one value{hint}")
    return values[0]


# -------------------------------------------------------------------------------------- the engine


def read_engine(
    job: ModelDeviJob,
    with_plumed: bool,
    place: Callable[[str], str],
    named: Mapping[int, str],
    where: str,
) -> Json:
    """The engine of a job with a template. `named`: names of its systems by index. Raises
    `SpecError`."""
    assert job.template is not None
    if with_plumed and job.template.plm is None:
        raise SpecError(f"{where}.template.plm: missing; model_devi_plumed requires it")
    texts = {"lammps": place(job.template.lmp)}
    if with_plumed and job.template.plm is not None:
        texts["plumed"] = place(job.template.plm)
    every = _revised(job.rev_mat, with_plumed)
    own = {
        name: _further(
            _revised(_own(job, index), with_plumed), every, f"{where}.sys_rev_mat.{index}"
        )
        for index, name in named.items()
    }
    parts = {
        "revisions": _revisions(_effective(every, Revised(), f"{where}.rev_mat")),
        "system_revisions": {name: words for name, words in own.items() if words},
    }
    return {"kind": "template", **texts, **{key: value for key, value in parts.items() if value}}


def _revised(given: Revised, with_plumed: bool) -> Revised:
    return given if with_plumed else given.model_copy(update={"plm": {}})


def _further(own: Revised, every: Revised, where: str) -> Json:
    """A system's own placeholders in addition to those of `every` system."""
    for word in sorted(own.lmp.keys() & every.plm.keys()):
        raise SpecError(f"{where}.lmp.{word}: also in rev_mat.plm; use different names")
    return _revisions(_effective(own, every, where))


def _effective(given: Revised, before: Revised, where: str) -> Revised:
    """`given` without the placeholders that DP-GEN has already replaced."""
    lmp = _left(given.lmp, before.lmp, f"{where}.lmp")
    plm = _left(given.plm, {**before.plm, **given.lmp, **before.lmp}, f"{where}.plm")
    return Revised(lmp=lmp, plm=plm)


def _left(words: Words, before: Words, where: str) -> Words:
    for word in words.keys() & before.keys():
        if words[word] != before[word]:
            raise SpecError(
                f"{where}.{word}: {words[word]}: DP-GEN uses {before[word]} instead; remove it"
            )
    return {word: values for word, values in words.items() if word not in before}


def _revisions(given: Revised) -> Json:
    """Revisions as in the engine's settings, without steps and temperatures, which belong to the
    stage."""
    lammps = {word: values for word, values in given.lmp.items() if word not in WORDS.values()}
    texts = {"lammps": lammps, "plumed": given.plm}
    return {key: words for key, words in texts.items() if words}
