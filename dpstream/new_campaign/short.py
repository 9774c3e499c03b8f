"""A short spec for given structures, which is valid as it is."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from ase.data import atomic_masses, atomic_numbers, chemical_symbols

from dpstream.inputs.read_structures import read_structures
from dpstream.new_campaign.elements import CRYSTALS, crystal
from dpstream.new_campaign.labels import GAMMA_ONLY, settings
from dpstream.shared.errors import SpecError
from dpstream.shared.spec.errors import did_you_mean

Kind = Literal["bulk", "liquid", "surface", "molecule"]

EDGE, GAMMA_EDGE, MOST_ATOMS = 6.5, 8.0, 120
"""Å: cells of crystals are repeated up to this length, with codes that sample the Γ point alone up
to the second, and to so many atoms."""
LIGHT, MEDIUM = 3.0, 30.0
"""Atomic masses, u, below which time steps are 0.5 and 1 fs; 2 fs above."""
VIRIAL = """\
training:                     # the virial, which dynamics at constant pressure needs
  input:
    loss: {start_pref_v: 0.02, limit_pref_v: 1}

"""
DEMO = "    # semi-empirical: for a first test, not for publication"

TEXT = """\
# {name}: {formulas} ({kind}), labels by {code}. Units: eV, Å, ps, K, bar.
#   dpstream validate campaign.yaml     checks everything and prints the plan
#   dpstream run campaign.yaml
# All other keys have defaults: `dpstream new NAME --full` writes a spec with every key.

name: {name}
type_map: {type_map}

systems:
  start:
    structures: {files}
{supercell}
initial:                      # labelled before the first training
  perturb: {perturb}

{training}md:                           # exploration
  ensemble: {ensemble}
  timestep: {timestep}             # ps
  steps: 2000                 # per trajectory
  every: 20                   # steps between checks of the model deviation
  trajectories: 4             # per temperature and pressure, in each round

{stages}
trust: {{low: 0.1, high: 0.3}}  # eV/Å: below accurate, in between candidate, above failed

labels:
  code: {code}{remark}
  settings:
{settings}
budget: {{labels: 1000, rounds: 10}}   # at most; rounds per stage
"""


@dataclass(frozen=True)
class Given:
    """Structures for a new campaign: contents of files by name, and all frames in them."""

    files: Mapping[str, bytes]
    frames: Sequence[Any]

    @property
    def periodic(self) -> bool:
        return bool(self.frames[0].pbc.any())


def symbols_in(text: str) -> list[str]:
    """Chemical symbols separated by commas. Raises SpecError for anything else."""
    symbols = [each.strip() for each in text.split(",") if each.strip()]
    for symbol in symbols:
        if symbol not in chemical_symbols[1:]:
            hint = did_you_mean(symbol, chemical_symbols[1:])
            raise SpecError(f"--elements {symbol}: no chemical symbol{hint}")
    return symbols


def given(paths: Sequence[Path], elements: Sequence[str]) -> Given:
    """The structures in files, or the crystal of the one element. Raises SpecError."""
    from ase.io import write  # deferred: slow to import

    if not paths:
        if len(elements) != 1:
            raise SpecError("--structure: give files, or one element with --elements")
        atoms, text = crystal(elements[0]), io.StringIO()
        write(text, atoms, format="vasp", direct=True)
        return Given({f"{elements[0]}.vasp": text.getvalue().encode()}, [atoms])
    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"--structure: two files are named {name}; rename one")
    for path in paths:
        if path.is_dir():
            raise SpecError(f"--structure {path}: is a folder; give files of structures")
    frames = [frame for path in paths for frame in read_structures(path)]
    if len({bool(frame.pbc.any()) for frame in frames}) > 1:
        raise SpecError("--structure: molecules and cells together; make a campaign of one kind")
    return Given({path.name: path.read_bytes() for path in paths}, frames)


def short_spec(
    name: str, structures: Given, code: str, elements: Sequence[str], kind: Kind | None
) -> str:
    """The text of the spec. `elements`: those of the model, by default the structures'; `kind`: by
    default molecule without a cell, else bulk. Raises SpecError."""
    type_map = _type_map(structures.frames, elements)
    kind = _kind(kind, structures.periodic)
    label_settings = settings(code, type_map, structures.periodic)
    return TEXT.format(
        name=name,
        formulas=", ".join(_formulas(structures.frames)),
        kind=kind,
        code=code,
        type_map=_flow(type_map),
        files=_flow([f"structures/{file}" for file in structures.files]),
        supercell=_supercell(structures.frames[0], code, kind),
        training=VIRIAL if kind in CELLS_MOVE else "",
        perturb=_flow({"copies": 20, "displace": 0.1, "strain": 0.03 * (kind in CELLS_MOVE)}),
        ensemble="npt" if kind in CELLS_MOVE else "nvt",
        timestep=_timestep(type_map),
        stages=_stages(kind, type_map),
        remark=DEMO if code in ("tblite", "ase") else "",
        settings=_block(label_settings),
    )


CELLS_MOVE = ("bulk", "liquid")
"""Kinds that are explored at constant pressure."""


def _type_map(frames: Iterable[Any], elements: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(symbol for frame in frames for symbol in frame.symbols))
    missing = [symbol for symbol in found if elements and symbol not in elements]
    if missing:
        raise SpecError(f"--elements: lacks {', '.join(missing)}, which the structures contain")
    return list(dict.fromkeys(elements)) or found


def _kind(kind: Kind | None, periodic: bool) -> Kind:
    if kind is None:
        return "bulk" if periodic else "molecule"
    if (kind == "molecule") == periodic:
        has = "have cells" if periodic else "have no cell"
        raise SpecError(f"--kind {kind}: the structures {has}")
    return kind


def _formulas(frames: Iterable[Any]) -> list[str]:
    formulas = list(dict.fromkeys(frame.get_chemical_formula() for frame in frames))
    return [*formulas[:3], *(["…"] if len(formulas) > 3 else [])]


def _supercell(atoms: Any, code: str, kind: Kind) -> str:
    """Repeats of the first cell, of surfaces in the plane; nothing if it is large enough."""
    if kind not in ("bulk", "surface"):
        return ""
    edge = GAMMA_EDGE if code in GAMMA_ONLY else EDGE
    repeats = [math.ceil(edge / length) for length in atoms.cell.lengths()]
    if kind == "surface":
        repeats[2] = 1
    while math.prod(repeats) * len(atoms) > MOST_ATOMS and max(repeats) > 1:
        repeats[repeats.index(max(repeats))] -= 1
    if max(repeats) == 1:
        return ""
    count = math.prod(repeats) * len(atoms)
    return f"    supercell: {repeats}      # {count} atoms\n"


def _timestep(elements: Iterable[str]) -> float:
    lightest = min(atomic_masses[atomic_numbers[symbol]] for symbol in elements)
    return 0.0005 if lightest < LIGHT else 0.001 if lightest < MEDIUM else 0.002


def _stages(kind: Kind, elements: Sequence[str]) -> str:
    """Each range of temperatures is a stage, the hotter the later."""
    if kind == "bulk" and len(elements) == 1 and elements[0] in CRYSTALS:
        melting, modulus = CRYSTALS[elements[0]]
        return (
            "material:     # stages from 0 to 2 Tm, at pressures from -0.01 to 0.09 B\n"
            f"  Tm: {melting:g}    # melting point, K\n"
            f"  B: {modulus:g}      # bulk modulus, GPa\n"
        )
    warm, hot = {"liquid": ([300], [350, 400])}.get(kind, ([300], [450, 600]))
    pressures = "    pressures: [1, 10000]     # bar\n" if kind in CELLS_MOVE else ""
    stages = "".join(
        f"  - name: {name}\n    systems: [start]\n    temperatures: {temperatures}\n{pressures}"
        for name, temperatures in (("warm", warm), ("hot", hot))
    )
    return "stages:                       # in this order, each until it converges; K\n" + stages


def _flow(value: Any) -> str:
    """In one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.strip().removesuffix("...").strip()


def _block(value: Mapping[str, Any]) -> str:
    return "".join(f"    {key}: {_flow(each)}\n" for key, each in value.items())
