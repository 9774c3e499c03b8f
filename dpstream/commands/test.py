"""`dpstream test`: compares properties of a model with those of the recipe that labelled its data.

Both sides are ASE calculators: the model through DeePMD-kit, the recipe through the label cache.
`dpstream.properties` computes the properties, prints the table and writes the results.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dpstream.commands.options import DEFAULT_ROOT, Root, within
from dpstream.inputs.read_structures import read_structures
from dpstream.properties.basis import PropertySettings
from dpstream.properties.calculators import RecipeCalculator, model_calculator
from dpstream.properties.comparison import PROPERTIES, compare, missing, table, write
from dpstream.running.connection import open_store
from dpstream.running.label_here import frame_labeler
from dpstream.running.recipe_file import RecipeOption, read_recipe
from dpstream.shared.atoms.frames import as_frame, to_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.ports import Store
from dpstream.shared.spec.errors import did_you_mean
from dpstream.terminal.console import console, print_line

RECIPES = (".yaml", ".yml", ".json")
DEFAULTS = PropertySettings()


Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A DeePMD-kit model, or a second recipe (YAML or JSON)."),
]
StructureFiles = Annotated[
    list[Path],
    typer.Argument(metavar="STRUCTURES...", help="Crystals or molecules, in any format of ASE."),
]
Names = Annotated[
    str | None,
    typer.Option(
        metavar="LIST", help=f"Any of {', '.join(PROPERTIES)}; default: all that are available."
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the results.")
]
Size = Annotated[
    float, typer.Option(min=1, help="Smallest edge of supercells and thickness of slabs, Å.")
]
Fmax = Annotated[float, typer.Option(min=1e-4, help="Largest force in a relaxed structure, eV/Å.")]
Millers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="H,K,L",
        help="Miller indices of a surface, in the given cell; may be repeated. Default: 1,0,0 "
        "1,1,0 1,1,1.",
    ),
]
Line = Annotated[
    str,
    typer.Option(
        metavar="H,K,L:X,Y",
        help="γ-line: the plane, and the last shift in units of the slab's in-plane cell vectors.",
    ),
]


def compare_properties(
    model: Model,
    structures: StructureFiles,
    recipe: RecipeOption,
    properties: Names = None,
    output: Output = Path("properties"),
    size: Size = DEFAULTS.size,
    fmax: Fmax = DEFAULTS.fmax,
    miller: Millers = None,
    line: Line = "1,1,1:0.5,-0.5",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Compare a model with its recipe on properties that were not trained on.

    Model and recipe each relax the structure, then compute the equation of state, elastic
    constants, vacancies, interstitials, surfaces, a γ-line and phonons. Every single point with the
    recipe is a label in the cache in --store, so nothing is computed twice; after Ctrl-C, run the
    same command to continue.

    Writes properties.json and a plot of the curves. Exit status: 0 all properties computed, 1 some
    failed, 2 bad input, 130 interrupted.

    Example: dpstream test models/final.pb Cu.cif --recipe campaign.yaml --properties eos,elastic
    """
    wanted, how = _wanted(properties), _how(fmax, size, miller, line)
    named = [each for path in structures for each in _structures(path)]
    folder = _folder(output)
    with within(root), _sides(model, recipe, open_store(root), folder / "engine.log") as sides:
        _check_elements(named, sides["model"])
        report = partial(print_line, console)
        compared = [compare(name, atoms, wanted, sides, how, report) for name, atoms in named]
        labelled_with = sides["recipe"].labeler.recipe.model_dump()
    for each in compared:
        console.print(table(each, list(sides)))
    about = {"model": str(model), "recipe": labelled_with, "how": vars(how)}
    for path in write(compared, folder, about):
        print_line(console, f"wrote {path}")
    if not all(each.complete for each in compared):
        raise typer.Exit(1)


# ------------------------------------------------------------------------------ options


def _wanted(properties: str | None) -> list[str]:
    if properties is None:
        return [name for name in PROPERTIES if not missing(name)]
    wanted = [name.strip() for name in properties.split(",") if name.strip()]
    for name in wanted:
        if name not in PROPERTIES:
            hint = did_you_mean(name, PROPERTIES) or f"; allowed: {', '.join(PROPERTIES)}"
            raise SpecError(f"--properties: unknown property {name!r}{hint}")
        if missing(name):
            raise SpecError(
                f"--properties: {name} needs {missing(name)}, which is not installed; "
                "pip install 'dpstream[properties]'"
            )
    return wanted


def _how(fmax: float, size: float, miller: list[str] | None, line: str) -> PropertySettings:
    millers = tuple(map(_miller, miller)) if miller else DEFAULTS.millers
    return PropertySettings(fmax=fmax, size=size, millers=millers, line=_line(line))


def _miller(text: str, option: str = "--miller") -> tuple[int, int, int]:
    match = re.fullmatch(r"\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*", text)
    indices = tuple(map(int, match.groups())) if match else ()
    if len(indices) != 3 or not any(indices):
        raise SpecError(f"{option}: {text!r}: must be three indices, not all zero, e.g. 1,1,1")
    return indices


def _line(text: str) -> tuple[tuple[int, int, int], tuple[float, float]]:
    plane, _, along = text.partition(":")
    try:
        x, y = map(float, along.split(","))
    except ValueError:
        x = y = 0.0
    if (x, y) == (0.0, 0.0):
        raise SpecError(f"--line: {text!r}: must be a plane and a shift, e.g. 1,1,1:0.5,-0.5")
    return _miller(plane, "--line"), (x, y)


def _structures(path: Path) -> Iterator[tuple[str, Any]]:
    read = read_structures(path)
    for number, atoms in enumerate(read):
        name = str(path) if len(read) == 1 else f"{path}: frame {number}"
        yield name, to_ase(as_frame(atoms, name))


def _folder(output: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--output: {output}: cannot be created: {error.strerror}") from error
    return output


# ------------------------------------------------------------------------------ the two sides


@contextmanager
def _sides(model: Path, recipe: Path, store: Store, log: Path) -> Iterator[dict[str, Any]]:
    """The calculators by side; their engines stop at the end of the block. TensorFlow's output
    goes to `log`."""
    with ExitStack() as stack:

        def by_recipe(path: Path) -> Any:
            labeler = frame_labeler(read_recipe(path)[0], store, "test", threading.Event())
            return RecipeCalculator(stack.enter_context(labeler))

        reference = by_recipe(recipe)
        if model.suffix in RECIPES:
            tested = by_recipe(model)
        else:
            stack.enter_context(_stderr_to(log))
            tested = model_calculator(model)
        yield {"model": tested, "recipe": reference}


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Redirect stderr on the level of the file descriptor, so that C++ libraries follow too."""
    sys.stderr.flush()
    kept = os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_elements(named: Sequence[tuple[str, Any]], calculator: Any) -> None:
    known = getattr(calculator, "type_dict", {})
    for name, atoms in named:
        unknown = sorted(set(atoms.get_chemical_symbols()) - set(known))
        if known and unknown:
            raise SpecError(
                f"{name}: element {unknown[0]} is not in the model, which has {', '.join(known)}"
            )
