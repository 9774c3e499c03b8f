"""A job's own LAMMPS input as the engine `template` of its stage, and what a job then leaves to it.

DP-GEN replaces a word by the first of these that has it: rev_mat.lmp, sys_rev_mat.*.lmp and, in the
PLUMED input, rev_mat.plm and sys_rev_mat.*.plm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpstream.dpgen.key_table import Key, KeyLine, account
from dpstream.dpgen.keys import JOBS, LEFT_TO_TEMPLATE, REVISIONS, TEMPLATE
from dpstream.dpgen.param_model import ModelDeviJob, Revised, RunParam, Words
from dpstream.shared.errors import SpecError

Json = dict[str, Any]
TEMPERATURE = "V_TEMP"
WORDS = {"nsteps": "V_NSTEPS", "temps": TEMPERATURE}
"""Words of a LAMMPS input that have a key of their own in a stage, by DP-GEN's keys for it."""
FORCES = (
    "template: units, atoms, forces, thermo and dump are dpstream's; the committee alone drives"
)
NUMBERS = "template.plm: atoms are numbered as sorted by element; @H2 is a file's second hydrogen"


def template_differences(param: RunParam, jobs: Sequence[tuple[int, ModelDeviJob]]) -> list[str]:
    """What is not as in DP-GEN where jobs have templates."""
    if not any(job.template for _, job in jobs):
        return []
    return [FORCES, NUMBERS] if param.model_devi_plumed else [FORCES]


def account_job(job: Mapping[str, Any], where: str, with_plumed: bool) -> list[KeyLine]:
    """What becomes of each key of a job and of those inside its template and matrices."""
    templated = bool(job.get("template"))
    own = LEFT_TO_TEMPLATE if templated else {}
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
    """`table`, in which PLUMED is not used unless the file turns it on."""
    off = Key("plm", "unused", "model_devi_plumed is not true")
    return [off if key.name == "plm" and not with_plumed else key for key in table]


def settled(job: ModelDeviJob, systems: Sequence[int], where: str) -> ModelDeviJob:
    """The job with its steps and temperatures, of which a template's are among its words. Raises
    `SpecError` where they are missing, contradict each other or differ between systems."""
    if job.template is None:
        return _complete(job, where)
    strays = sorted(job.sys_rev_mat.keys() - {str(index) for index in systems})
    if strays:
        raise SpecError(f"{where}.sys_rev_mat: {strays[0]!r} is not in sys_idx; drop it")
    found = {key: _given(job, key, systems, where) for key in WORDS}
    steps = _one(found["nsteps"], "nsteps", where)
    if steps < 1 or steps % 1:
        raise SpecError(f"{where}.nsteps: {steps:g}: should be a whole number from 1 on")
    if TEMPERATURE not in _lammps(job, systems[0]):
        _one(found["temps"], "temps", where)
    return job.model_copy(update={"nsteps": int(steps), "temps": found["temps"]})


def _complete(job: ModelDeviJob, where: str) -> ModelDeviJob:
    for key in ("temps", "nsteps", "ensemble"):
        if getattr(job, key) is None:
            raise SpecError(f"{where}.{key}: missing")
    for key in ("rev_mat", "sys_rev_mat"):
        if getattr(job, key) not in (Revised(), {}):
            raise SpecError(f"{where}.{key}: there is no template to revise; drop it")
    return job


def _given(job: ModelDeviJob, key: str, systems: Sequence[int], where: str) -> list[float]:
    """The values of `key`: those of its word, which all systems share, or else the job's own."""
    word, own = WORDS[key], getattr(job, key)
    named: list[float] = own if isinstance(own, list) else [] if own is None else [own]
    found = [_lammps(job, index).get(word) for index in systems]
    if any(values != found[0] for values in found):
        raise SpecError(
            f"{where}.sys_rev_mat: {word}: the systems of a stage share it; write a job for each"
        )
    if found[0] is None:
        return named
    numbers = _numbers(found[0], f"{where}.rev_mat.lmp.{word}")
    if named and numbers != named:
        raise SpecError(
            f"{where}.{key}: {own}: DP-GEN goes by {word}, which is {found[0]}; drop {key}"
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
        raise SpecError(f"{where}: {list(values)}: should be numbers")
    return numbers


def _one(values: list[float], key: str, where: str) -> float:
    if not values:
        raise SpecError(f"{where}.{key}: missing; give it, or {WORDS[key]} in rev_mat.lmp")
    if len(values) > 1:
        hint = f"; or {TEMPERATURE} in rev_mat.lmp" if key == "temps" else ""
        raise SpecError(f"{where}.{key}: {values}: a template runs with one{hint}")
    return values[0]


# -------------------------------------------------------------------------------------- the engine


def read_engine(
    job: ModelDeviJob,
    with_plumed: bool,
    place: Callable[[str], str],
    named: Mapping[int, str],
    where: str,
) -> Json:
    """The engine of a job with a template, `named` the names of its systems by index."""
    assert job.template is not None
    if with_plumed and job.template.plm is None:
        raise SpecError(f"{where}.template.plm: missing; model_devi_plumed needs it")
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
    found = {
        "revisions": _revisions(_effective(every, Revised(), f"{where}.rev_mat")),
        "system_revisions": {name: words for name, words in own.items() if words},
    }
    return {"kind": "template", **texts, **{key: value for key, value in found.items() if value}}


def _revised(given: Revised, with_plumed: bool) -> Revised:
    return given if with_plumed else given.model_copy(update={"plm": {}})


def _further(own: Revised, every: Revised, where: str) -> Json:
    """A system's own words on top of those of `every` system."""
    for word in sorted(own.lmp.keys() & every.plm.keys()):
        raise SpecError(f"{where}.lmp.{word}: rev_mat.plm has it too; give them different names")
    return _revisions(_effective(own, every, where))


def _effective(given: Revised, before: Revised, where: str) -> Revised:
    """`given` without the words that DP-GEN has replaced by then."""
    lmp = _left(given.lmp, before.lmp, f"{where}.lmp")
    plm = _left(given.plm, {**before.plm, **given.lmp, **before.lmp}, f"{where}.plm")
    return Revised(lmp=lmp, plm=plm)


def _left(words: Words, before: Words, where: str) -> Words:
    for word in words.keys() & before.keys():
        if words[word] != before[word]:
            raise SpecError(
                f"{where}.{word}: {words[word]}: DP-GEN puts {before[word]} there; drop it"
            )
    return {word: values for word, values in words.items() if word not in before}


def _revisions(given: Revised) -> Json:
    """As an engine has them; steps and temperatures are the stage's."""
    lammps = {word: values for word, values in given.lmp.items() if word not in WORDS.values()}
    found = {"lammps": lammps, "plumed": given.plm}
    return {key: words for key, words in found.items() if words}
