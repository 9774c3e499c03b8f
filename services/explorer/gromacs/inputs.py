"""Input files of GROMACS, made from those of a campaign: run parameters, topology, coordinates.

A campaign's files are not trusted. Only parameters that name no file and run no code are allowed,
and a topology may include the force fields of GROMACS only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dpstream.shared.atoms.frames import Floats, Ints
from dpstream.shared.spec import Md
from dpstream.shared.spec.errors import did_you_mean
from dpstream.shared.values import Condition

# fmt: off
OURS = frozenset({
    "compressed-x-grps", "compressed-x-precision", "continuation", "cpp", "dt", "gen-seed",
    "gen-temp", "gen-vel", "init-step", "ld-seed", "nstenergy", "nstfout", "nstlog", "nstvout",
    "nstxout", "nstxout-compressed", "nstxtcout", "nsteps", "ref-p", "ref-t", "simulation-part",
    "tinit", "title", "xtc-grps", "xtc-precision"
})
"""Parameters that dpstream sets; those of the user's file are dropped."""
PASSED = frozenset({
    "bd-fric", "comm-grps", "comm-mode", "compressibility", "constraint-algorithm", "constraints",
    "coulomb-modifier", "coulombtype", "cutoff-scheme", "define", "dispcorr", "energygrp-excl",
    "energygrps", "epsilon-r", "epsilon-rf", "epsilon-surface", "ewald-geometry", "ewald-rtol",
    "ewald-rtol-lj", "fourier-nx", "fourier-ny", "fourier-nz", "fourierspacing", "freezedim",
    "freezegrps", "integrator", "lincs-iter", "lincs-order", "lincs-warnangle", "lj-pme-comb-rule",
    "morse", "nh-chain-length", "ns-type", "nstcalcenergy", "nstcomm", "nstlist", "nstpcouple",
    "nsttcouple", "optimize-fft", "pbc", "pcoupl", "pcoupltype", "periodic-molecules", "pme-order",
    "rcoulomb", "rcoulomb-switch", "refcoord-scaling", "rlist", "rvdw", "rvdw-switch", "shake-sor",
    "shake-tol", "tau-p", "tau-t", "tc-grps", "tcoupl", "vdw-modifier", "vdwtype",
    "verlet-buffer-tolerance"
})
SWITCHES = frozenset({
    "adress", "annealing", "awh", "colvars-active", "density-guided-simulation-active", "disre",
    "free-energy", "implicit-solvent", "mts", "orire", "pull", "qmmm", "qmmm-cp2k-active",
    "rotation", "simulated-tempering", "swapcoords"
})
"""What a campaign does not do; lines that say so are dropped."""
OFF = frozenset({"no", "none", "off", "false", "0"})
NEUTRAL = {
    "nwall": 0, "cos-acceleration": 0, "electric-field-x": 0, "electric-field-y": 0,
    "electric-field-z": 0, "mass-repartition-factor": 1
}
"""Values that change nothing; such lines are dropped."""
# fmt: on
IDLE = re.compile(
    r"emtol|emstep|niter|fcstep|nstcgsteep|nbfgscorr|rtpi|table-extension|separate-dhdl-file"
    r"|print-nose-hoover-chain-variables|nst(dhdl|disreout|orireout)|user(int|real)\d"
    r"|(init|delta)-lambda.*|calc-lambda-neighbors|\w+-lambdas"
    r"|(annealing|couple|dh-hist|dhdl|disre|orire|pull|sc|sim-temp|simulated-tempering|wall)-.+"
)
"""Details of minimisers and switches, without effect in dynamics with the switches off; dropped."""
SPELLINGS = {name.replace("-", ""): name for name in (*OURS, *PASSED, *SWITCHES, *NEUTRAL)}
"""Names without hyphens, which GROMACS ignores."""
INTEGRATORS = ("md", "md-vv", "md-vv-avek", "sd", "bd")
STOCHASTIC = ("sd", "bd")
"""Integrators that are thermostats themselves."""
REFERENCES = {"isotropic": (1, 0), "semiisotropic": (2, 0), "anisotropic": (3, 3)}
"""Values of ref-p by pcoupltype: how many are the pressure, and how many zero."""
COUPLINGS = {"iso": "isotropic", "aniso": "anisotropic", "tri": "anisotropic"}
"""The pcoupltype of an ensemble npt-…; npt has any."""
DEFINE = re.compile(r"(?:-D\w+(?:=[\w.+-]+)?\s*)*")
VALUE = re.compile(r"[\w\s.+*-]*")
DIRECTIVE = re.compile(r"\s*#\s*(\w*)")
DIRECTIVES = frozenset({"define", "undef", "ifdef", "ifndef", "else", "endif"})
FORCE_FIELD = re.compile(r'\s*#\s*include\s+"[\w+-]+\.ff/[\w+-]+\.\w+"\s*(?:;.*)?')
"""An include of a force field that GROMACS has."""
NM = 0.1
"""nm per Å."""
ROOM = 1.0
"""nm around a molecule in vacuum, in addition to the cutoffs."""
WIDE = 100.0
"""Å; GROMACS' default cutoffs are 10 Å."""
CUTOFFS = ("rcoulomb", "rvdw", "rlist")
DEFAULTS = {
    "integrator": "md",
    "pbc": "xyz",
    "pcoupl": "no",
    "pcoupltype": "isotropic",
    "ref-p": "1",
    "tcoupl": "no",
    **dict.fromkeys(CUTOFFS, "1"),
}
"""GROMACS' own; of ref-p, which has none, that of a stage."""


def mdp_text(given: Mapping[str, str], md: Md, condition: Condition, seed: int) -> str:
    """The run parameters of one condition, from those of the user. Raises ValueError if their
    thermostat or barostat contradicts `md`."""
    _check_ensemble(given, md.ensemble)
    theirs = {name: value for name, value in given.items() if name not in OURS}
    own = _own(given, md, condition, seed)
    return "".join(f"{name} = {value}\n" for name, value in {**theirs, **own}.items())


def parameters(text: str) -> dict[str, str]:
    """The parameters of a file, by their names in lower case with hyphens, without those that have
    no effect. Raises ValueError for those that are not allowed."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.partition(";")[0].strip()
        if not bare:
            continue
        name, equals, value = (part.strip() for part in bare.partition("="))
        # GROMACS ignores case, hyphens and underscores.
        name = name.lower().replace("_", "-")
        name = SPELLINGS.get(name.replace("-", ""), name)
        try:
            _check(name, equals, value)
        except ValueError as error:
            raise ValueError(f"mdp: line {number}: {bare!r}: {error}") from error
        if not _is_idle(name, value):
            found[name] = value
    return found


def _check(name: str, equals: str, value: str) -> None:
    if not equals:
        raise ValueError("must be PARAMETER = VALUE")
    if name in OURS or _is_idle(name, value):
        return
    if name in SWITCHES:
        raise ValueError("must be no: a campaign runs plain dynamics")
    if name not in PASSED:
        hint = did_you_mean(name, PASSED, 0.85)
        hint = hint or "; it may name files, run code or change the protocol"
        raise ValueError(f"{name} is not allowed in a campaign{hint}")
    if name in CUTOFFS and not _is_number(value):
        raise ValueError("must be a number, nm")
    if not (DEFINE if name == "define" else VALUE).fullmatch(value):
        raise ValueError("the value must be numbers and names")
    if name == "integrator" and value.lower() not in INTEGRATORS:
        raise ValueError(f"must be one of {', '.join(INTEGRATORS)}")


def ensemble_of(given: Mapping[str, str]) -> str:
    """nve, nvt or npt, as the parameters make it. Raises ValueError for nph."""
    thermostat = _is_on(given, "tcoupl") or _value(given, "integrator") in STOCHASTIC
    barostat = _is_on(given, "pcoupl")
    if barostat and not thermostat:
        raise ValueError("mdp: pcoupl without tcoupl is nph; set tcoupl, e.g. v-rescale")
    return ("npt" if barostat else "nvt") if thermostat else "nve"


def _check_ensemble(given: Mapping[str, str], ensemble: str) -> None:
    found = ensemble_of(given)
    kind, _, shape = ensemble.partition("-")
    if found != kind:
        raise ValueError(
            f"mdp: integrator, tcoupl and pcoupl make the ensemble {found}, md.ensemble is "
            f"{ensemble}; change one"
        )
    coupling = _value(given, "pcoupltype")
    if found == "npt" and coupling not in REFERENCES:
        raise ValueError(f"mdp: pcoupltype: must be one of {', '.join(REFERENCES)}")
    if shape and coupling != COUPLINGS[shape]:
        raise ValueError(
            f"mdp: pcoupltype is {coupling}, but md.ensemble {ensemble} needs {COUPLINGS[shape]}; "
            "change one (npt goes with any)"
        )


def _is_idle(name: str, value: str) -> bool:
    """Whether a line has no effect on the dynamics of a campaign. An empty value is the default."""
    if name in OURS or name in PASSED:
        return False
    words = value.lower().split()
    if not words or IDLE.fullmatch(name):
        return True
    if name in NEUTRAL:
        return all(_is_number(word) and float(word) == NEUTRAL[name] for word in words)
    return name in SWITCHES and OFF.issuperset(words)


def pressure_of(given: Mapping[str, str]) -> float:
    """The pressure in ref-p, bar, by default 1. Raises ValueError unless it is one hydrostatic
    pressure."""
    kind, text = _value(given, "pcoupltype"), given.get("ref-p", DEFAULTS["ref-p"])
    times, zeros = REFERENCES.get(kind, (1, 0))
    if not text or not all(map(_is_number, text.split())):
        raise ValueError(f"mdp: ref-p = {text}: must be numbers, bar")
    values = [float(part) for part in text.split()]
    if set(values[:times]) != {values[0]} or any(values[times : times + zeros]):
        raise ValueError(
            f"mdp: ref-p = {text}: a stage has one pressure; give equal values, and zeros off the "
            "diagonal"
        )
    return values[0]


def check_box(given: Mapping[str, str], is_vacuum: bool) -> None:
    """Raises ValueError for a `pbc` other than of the structure. A molecule in vacuum gets a cell
    all the same, because GROMACS needs one."""
    pbc = _value(given, "pbc")
    if pbc != "xyz" and not (is_vacuum and pbc == "no"):
        instead = "xyz or no" if is_vacuum else "xyz, because the structure has a cell"
        raise ValueError(f"mdp: pbc = {pbc}: must be {instead}")


def _value(given: Mapping[str, str], name: str) -> str:
    return (given.get(name) or DEFAULTS[name]).lower()


def _is_on(given: Mapping[str, str], name: str) -> bool:
    return _value(given, name) != "no"


def _own(given: Mapping[str, str], md: Md, condition: Condition, seed: int) -> dict[str, str]:
    """The parameters that dpstream sets."""
    kelvin, seed = f"{condition.temperature:g}", seed % (2**31 - 1) + 1
    # "all checks, in full precision"
    output = {"nstxout": md.every, "nstvout": 0, "nstfout": 0, "nstlog": 0, "nstenergy": 0}
    own: dict[str, object] = {"dt": md.timestep, "nsteps": md.steps, **output}
    own |= {"pbc": "xyz", "gen-vel": "yes", "gen-temp": kelvin, "gen-seed": seed, "ld-seed": seed}
    groups = given.get("tc-grps", "").split()
    if groups:
        own["ref-t"] = " ".join([kelvin] * len(groups))
    if _is_on(given, "pcoupl"):
        times, zeros = REFERENCES[_value(given, "pcoupltype")]
        own["ref-p"] = " ".join([f"{condition.pressure or 0.0:g}"] * times + ["0"] * zeros)
    return {name: str(value) for name, value in own.items()}


def check_topology(text: str) -> None:
    """Raises ValueError, naming the line, for directives that read other files than the force
    fields of GROMACS."""
    for number, line in enumerate(text.splitlines(), 1):
        directive = DIRECTIVE.match(line)
        if directive is None or FORCE_FIELD.fullmatch(line):
            continue
        if directive[1] not in DIRECTIVES or line.rstrip().endswith("\\"):
            raise ValueError(
                f"line {number}: {line.strip()!r}: only force fields of GROMACS can be included, "
                'as #include "NAME.ff/FILE.itp"; insert other files with `gmx grompp -pp`'
            )


class Misfit(ValueError):
    """Topology and structure have different atoms."""


def canonical_order(
    atoms: Sequence[tuple[str, str]], elements: Mapping[str, str], species: Sequence[str]
) -> Ints:
    """Index in the topology of each atom of a canonical frame. `atoms`: names and elements of the
    topology's atoms, by default of their names' `elements`; `species`: those of the frame. Raises
    Misfit if they differ, and ValueError for an atom without element."""
    found = [elements.get(name, element) for name, element in atoms]
    if "" in found:
        name = atoms[found.index("")][0]
        raise ValueError(
            f"the topology has no element (at.num) of atom {name}; add it to elements, e.g. "
            f"{{{name}: C}}"
        )
    order: Ints = np.argsort(np.array(found, dtype=np.str_), kind="stable")
    if [found[index] for index in order] != list(species):
        raise Misfit(
            f"the topology has {_formula(found)}, the structure {_formula(species)}; both must "
            "have the same atoms, in the same order within an element"
        )
    return order


def _formula(elements: Sequence[str]) -> str:
    return " ".join(f"{each}{elements.count(each)}" for each in sorted(set(elements)))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def room_for(positions: Floats, given: Mapping[str, str]) -> Floats:
    """A cubic cell `(3, 3)` in Å around a molecule, wider than its cutoffs: GROMACS needs a
    cell."""
    cutoff = max(float(_value(given, name)) for name in CUTOFFS)
    edge = float(np.ptp(positions, axis=0).max()) + (2 * cutoff + ROOM) / NM
    return np.eye(3) * edge


def inputs_for_names(count: int, given: Mapping[str, str]) -> dict[str, str]:
    """Texts of run parameters and coordinates from which GROMACS reads a topology of `count` atoms
    whose order is not known yet: in a wide cell, the atoms closer than any cutoff."""
    positions = np.zeros((count, 3))
    positions[:, 0] = np.linspace(0.0, 1.0, count)
    lines = gro_lines(["X"] * count, positions, np.eye(3) * WIDE)
    defines = given.get("define", "")
    return {"names.mdp": f"define = {defines}\n", "names.gro": "\n".join(lines) + "\n"}


def gro_lines(names: Sequence[str], positions: Floats, cell: Floats) -> Iterator[str]:
    """The lines of a `.gro` file: positions `(n_atoms, 3)` and cell `(3, 3)` in Å."""
    yield from ("dpstream", str(len(names)))
    for number, (name, place) in enumerate(zip(names, positions * NM, strict=True), 1):
        x, y, z = place
        yield f"{1:5d}{'MOL':<5}{name:>5}{number % 100000:5d}{x:12.7f}{y:12.7f}{z:12.7f}"
    (a, b, c), rest = np.diag(cell * NM), cell * NM
    others = (rest[0, 1], rest[0, 2], rest[1, 0], rest[1, 2], rest[2, 0], rest[2, 1])
    yield " ".join(f"{value:.7f}" for value in (a, b, c, *others))
