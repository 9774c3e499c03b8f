"""VASP: the user's INCAR and k-points, and POTCARs in the order of the elements.

G. Kresse, J. Furthmüller, Phys. Rev. B 54, 11169 (1996). Licensed software: each worker uses its
own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.services.labeler.codes.input_words import (
    incar_tags,
    is_true,
    number_of,
    refuse,
)
from dpstream.services.labeler.codes.parse import (
    NUMBER,
    first,
    last_line,
    number,
    numbers,
    read_text,
    rows_after,
)
from dpstream.services.labeler.codes.potentials import WithPotentials, potential
from dpstream.services.labeler.codes.user_program import Program
from dpstream.services.labeler.codes.write import (
    by_element,
    fractions,
    from_fractions,
    keywords,
    table,
    volume,
)
from dpstream.services.labeler.units import BOLTZMANN, KBAR
from dpstream.shared.atoms.frames import Floats, Frame
from dpstream.shared.errors import Permanent
from dpstream.shared.values import Kpoints, Recipe

PER_SYSTEM = "it belongs to one structure; give systems.NAME.label"
NOT_THE_USERS = {
    "MAGMOM": f"{PER_SYSTEM}.magmom, and atoms are written sorted by element",
    "NELECT": f"{PER_SYSTEM}.charge",
}
# fmt: off
ALGORITHM = frozenset({
    "ALGO", "IALGO", "NELM", "NELMIN", "NELMDL", "TIME", "IMIX", "AMIX", "BMIX", "AMIX_MAG",
    "BMIX_MAG", "AMIN", "MAXMIX", "WC",
})
# fmt: on
"""Tags that change the convergence but not the ground state; a retry may change only these."""
FORCELESS = re.compile(r"NONE|NOTHING|CHI|BSE|TDHF|TIMEEV|RPA|ACFDT|\w*GW")
REACHED = "aborting loop because EDIFF is reached"
NOT_REACHED = "EDIFF was not reached"
END = "Voluntary context switches"


def _incar(given: Any) -> Any:
    return keywords(given, "{key} = {value}", {True: ".TRUE.", False: ".FALSE."})


class VaspSettings(WithPotentials):
    incar: Annotated[str, BeforeValidator(_incar)] = Field(
        min_length=1,
        description="INCAR: its text, {file: INCAR}, or a mapping of its tags; passed untouched",
    )
    kpoints: Kpoints | str | None = Field(
        default=None,
        description="[4, 4, 4]: a mesh around Γ; or the text of a KPOINTS file; default: KSPACING "
        "in the INCAR",
    )

    retries: tuple[dict[str, str | int | float], ...] = Field(
        default=(),
        max_length=5,
        description="tags of further attempts, each made if the previous one did not converge: "
        "[{ALGO: Normal}, {ALGO: All, NELM: 300}]; default: none",
    )

    @field_validator("retries")
    @classmethod
    def _same_ground_state(cls, retries: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for tag in (tag for tags in retries for tag in tags):
            if tag.upper() not in ALGORITHM:
                raise ValueError(
                    f"{tag} may change the label; a retry may change {', '.join(sorted(ALGORITHM))}"
                )
        return retries

    @field_validator("incar")
    @classmethod
    def _general(cls, text: str) -> str:
        if "PLUGINS" in text.upper():
            raise ValueError("PLUGINS: remove it; it runs Python code")
        return text


def _check_tags(tags: Mapping[str, str]) -> None:
    """Raises ValueError for tags that are not the user's, and for those with which VASP gives
    anything but energy and forces of one frame."""
    refuse(tags, NOT_THE_USERS, "incar: ")
    if number_of(tags.get("NSW", ""), 0) > 0:
        raise ValueError("incar: NSW: remove it; a label is a single point, so atoms must not move")
    if number_of(tags.get("IMAGES", ""), 0) > 0:
        raise ValueError("incar: IMAGES: remove it; a label is the single point of one frame")
    if is_true(tags.get("ML_LMLFF", "")):
        raise ValueError("incar: ML_LMLFF: remove it; its forces are not those of the functional")
    if number_of(tags.get("ICHARG", ""), 0) >= 10:
        raise ValueError(
            "incar: ICHARG: remove it; values from 10 on read a CHGCAR and keep its density fixed"
        )
    if FORCELESS.match(tags.get("ALGO", "").upper()):
        raise ValueError(f"incar: ALGO: {tags['ALGO']} computes no forces; use e.g. Normal or Fast")


class Vasp(Program):
    name = "vasp"
    default_command = ("vasp_std",)
    settings: type[CodeSettings] = VaspSettings

    def check_labelable(self, settings: dict[str, Any]) -> None:
        tags = incar_tags(settings["incar"])
        _check_tags(tags)
        if settings["kpoints"] is None and "KSPACING" not in tags:
            raise ValueError("kpoints: give them, or KSPACING in the incar")

    def no_virial(self, settings: dict[str, Any]) -> str | None:
        tags = incar_tags(settings["incar"])
        isif = tags.get("ISIF")
        if isif is not None:
            return f"incar: ISIF = {isif}; give ISIF = 2" if number_of(isif, 2) < 2 else None
        moves, exact = number_of(tags.get("IBRION", ""), -1) == 0, is_true(tags.get("LHFCALC", ""))
        because = "IBRION = 0" if moves else "LHFCALC" if exact else None
        return None if because is None else f"incar: ISIF is 0 with {because}; give ISIF = 2"

    def at_electron_temperature(self, settings: dict[str, Any], kelvin: float) -> dict[str, Any]:
        """`free energy TOTEN` is E − TS. VASP uses the first of repeated tags."""
        tags = {"ISMEAR": -1, "SIGMA": f"{kelvin * BOLTZMANN:.10f}"}
        return {**settings, "incar": _incar(tags) + settings["incar"]}

    def tries(self, recipe: Recipe) -> Iterator[Recipe]:
        """The recipe, then its variants for retries. VASP uses the first of repeated tags."""
        yield recipe
        for tags in recipe.settings["retries"]:
            incar = _incar(tags) + recipe.settings["incar"]
            yield recipe.model_copy(update={"settings": {**recipe.settings, "incar": incar}})

    def write_inputs(self, frame: Frame, recipe: Recipe, folder: Path) -> None:
        potcars = _potcars(frame, recipe)
        (folder / "POSCAR").write_text(poscar(frame))
        (folder / "POTCAR").write_text("".join(potcars))
        (folder / "INCAR").write_text(_own_tags(frame, recipe, potcars) + recipe.settings["incar"])
        mesh = recipe.settings["kpoints"]
        if mesh is not None:
            (folder / "KPOINTS").write_text(mesh if isinstance(mesh, str) else _gamma(mesh))

    def read_outputs(self, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        """Reads OUTCAR; vasprun.xml has fewer digits of the energy."""
        text = read_text(folder / "OUTCAR")
        lines = text.splitlines()
        return Outcome(
            exit_status=exit_status,
            end_marker=END in text,
            converged=_converged(text),
            not_converged=NOT_REACHED in text,
            energies=numbers(rf"free  energy   TOTEN  =\s*({NUMBER})", text),
            frames=text.count("TOTAL-FORCE (eV/Angst)"),
            forces=rows_after(lines, r"TOTAL-FORCE \(eV/Angst\)", slice(3, 6), skip=2),
            virial=_virial(lines, frame),
            positions=from_fractions(
                rows_after(lines, "position of ions in fractional coordinates", slice(0, 3)), frame
            ),
            program=_program(text),
        )


def poscar(frame: Frame) -> str:
    """POSCAR with fractional coordinates, of which VASP keeps more digits than of Cartesian
    ones."""
    assert frame.cell is not None
    names, counts = zip(*by_element(frame), strict=True)
    return "\n".join(
        (
            frame.formula,
            "1.0",
            table(frame.cell, 6),
            " ".join(names),
            " ".join(map(str, counts)),
            "Direct",
            table(fractions(frame), 16),
            "",
        )
    )


def _potcars(frame: Frame, recipe: Recipe) -> list[str]:
    names = recipe.settings["potentials"]
    return [potential("vasp", names, symbol).read_text() for symbol, _ in by_element(frame)]


def _own_tags(frame: Frame, recipe: Recipe, potcars: list[str]) -> str:
    """Tags of this frame, written before the user's: VASP uses the first of repeated tags."""
    tags = ""
    if recipe.magmom is not None:
        tags += f"ISPIN = 2\nMAGMOM = {' '.join(f'{m:g}' for m in recipe.magmom)}\n"
    if recipe.charge:
        counts = [count for _, count in by_element(frame)]
        electrons = sum(n * _valence(p) for n, p in zip(counts, potcars, strict=True))
        tags += f"NELECT = {electrons - recipe.charge:g}\n"
    return tags


def _valence(potcar: str) -> float:
    found = re.search(r"ZVAL\s*=\s*([\d.]+)", potcar)
    if found is None:
        raise Permanent("vasp: a POTCAR on this worker has no ZVAL")
    return float(found[1])


def _gamma(mesh: tuple[int, int, int]) -> str:
    return f"k-points\n0\nGamma\n{' '.join(map(str, mesh))}\n0 0 0\n"


def _converged(text: str) -> bool:
    """Whether the SCF converged. VASP 5 prints "EDIFF is reached" even if NELM ended the loop;
    after exactly NELM steps the last energy changes decide."""
    if REACHED not in text:
        return False
    steps = [int(n) for n in re.findall(r"Iteration +\d+\( *(\d+)\)", text)]
    most = re.search(r"NELM +=\s*(\d+)", text)
    if not steps or most is None or steps[-1] < int(most[1]):
        return bool(steps) and most is not None
    return _settled(text)


def _settled(text: str) -> bool:
    """Whether total and band energy changed by less than EDIFF in the last step."""
    limit = numbers(rf"EDIFF  =\s*({NUMBER})", text)
    changes = re.findall(rf"\(2\. order\) :\s*({NUMBER})\s*\(\s*({NUMBER})\)", text)
    if not limit or not changes:
        return False
    return all(abs(number(change)) < limit[0] for change in changes[-1])


def _virial(lines: list[str], frame: Frame) -> Floats | None:
    """Virial from `in kB` (XX YY ZZ XY YZ ZX), which is −dE/dε over the volume. With ISIF = 1 only
    its trace is that of the stress."""
    if first(r"ISIF +=\s*(\d+)", "\n".join(lines)) == "1":
        return None
    at = last_line(lines, r"^\s*in kB ")
    try:
        found = [float(word) for word in lines[at].split()[2:8]] if at is not None else []
    except ValueError:
        return None
    if len(found) != 6:
        return None
    xx, yy, zz, xy, yz, zx = found
    return np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]]) * KBAR * volume(frame)


def _program(text: str) -> str | None:
    found = re.match(r"\s*vasp\.(\S+)", text)
    titles = ", ".join(re.findall(r"TITEL  = (.*\S)", text))
    return None if found is None else f"{found[1]} {titles}".strip()
