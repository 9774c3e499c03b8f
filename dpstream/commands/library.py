"""`dpstream library`: models and labels that groups share, on a folder or a bucket.

What a campaign contributes is one entry, `library/<campaign>-<spec>.json`. The objects it names
keep their keys, so that a library is a root too: a campaign run with it as --root finds the labels
in its cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from ase.formula import Formula
from pydantic import Field, ValidationError
from rich.console import RenderableType

from dpstream.commands.options import DEFAULT_ROOT, Campaign, Root, named, there, within
from dpstream.export.dataset_folder import claim, write_dataset
from dpstream.export.results import CampaignResults
from dpstream.running.connection import open_store
from dpstream.running.recipe_file import read_recipe
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.recipes import electrons
from dpstream.shared.atoms.dataset import Labelled, load_dataset
from dpstream.shared.atoms.frames import frame_key
from dpstream.shared.errors import SpecError, StoreError
from dpstream.shared.messages import MemberTrained
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.spec import Stage
from dpstream.shared.values import Dataset, Recipe, Ref, Rmse, Value
from dpstream.terminal.console import console, say
from dpstream.terminal.tables import text_table

PREFIX = "library/"
LARGEST = 1 << 20
"""Bytes of an entry."""

library = typer.Typer(
    help="Models and labels that groups share, on a folder or a bucket: look there first, compute "
    "only what is missing, contribute what you computed.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Library = Annotated[
    str,
    typer.Option(
        "--library",
        envvar="DPSTREAM_LIBRARY",
        metavar="DIR|URL",
        help="The library: a folder, or s3://bucket/prefix.",
        show_envvar=True,
    ),
]


class LibraryModel(Value):
    """A trained model; `held_out` are its errors on frames it never saw."""

    ref: Ref
    type_map: tuple[str, ...]
    final: bool
    train: Rmse
    held_out: Rmse | None = None


class LibraryEntry(Value):
    """What one campaign contributed: its best model, and its labels as a dataset manifest."""

    campaign: str
    recipe: Recipe
    conditions: tuple[str, ...] = Field(description="stages that the model was grown in")
    model: LibraryModel | None
    dataset: Ref
    formulas: dict[str, int] = Field(description="labelled frames by composition")
    elements: tuple[str, ...]

    @property
    def frames(self) -> int:
        return sum(self.formulas.values())


# ------------------------------------------------------------------------------ add


@library.command()
def add(library: Library, campaign: Campaign = None, root: Root = DEFAULT_ROOT) -> None:
    """Contribute a campaign: its best model and all its labels, imported sets included.

    Contributed again later, only what is new is copied.

    Example: dpstream library add copper --library s3://group/library
    """
    with within(root):
        source, name = named(campaign, root)
        harvest = CampaignResults.of(source, name)
    if harvest.recipe is None:
        raise SpecError(f"{name}: has not begun: there is nothing to contribute")
    with within(library):
        target = open_store(library)
        copied = sum(_copy(harvest, ref, target) for ref in _objects(harvest))
        entry = _enter(harvest, harvest.recipe, target)
    model = "no model" if entry.model is None else f"1 model ({', '.join(entry.model.type_map)})"
    say(console, f"{name}: {entry.frames} labels, {model}; {copied} new objects in {library}")


def _objects(harvest: CampaignResults) -> Iterator[Ref]:
    manifest = _manifest(harvest)
    yield from manifest.packs
    yield from manifest.labels
    if harvest.best is not None:
        yield harvest.best.model


def _copy(harvest: CampaignResults, ref: Ref, target: Store) -> bool:
    """Whether it was new there. Objects never change: one that is there is the same."""
    return not target.exists(ref.uri) and target.create(ref.uri, harvest.fetch(ref))


def _manifest(harvest: CampaignResults) -> Dataset:
    """Every label of the campaign, those of audits too, and its imported sets."""
    assert harvest.history.submitted is not None
    accepted = {
        life.ref.key: life.accepted.label
        for life in harvest.history.lives.values()
        if life.accepted is not None
    }
    labels = tuple(accepted[key] for key in sorted(accepted))
    return Dataset(version=0, packs=harvest.history.submitted.packs, labels=labels)


def _enter(harvest: CampaignResults, recipe: Recipe, target: Store) -> LibraryEntry:
    spec = Ref.to("spec", harvest.spec_bytes).sha256[:12]
    key = f"{PREFIX}{harvest.campaign}-{spec}"
    body = _manifest(harvest).model_dump_json().encode()
    dataset = Ref.to(f"{key}.dataset", body)
    target.put(dataset.uri, body)
    labelled = _labelled(target, dataset)
    formulas = Counter(item.frame.formula for item in labelled)
    entry = LibraryEntry(
        campaign=harvest.campaign,
        recipe=recipe,
        conditions=tuple(map(_condition, harvest.spec.stages)),
        model=None if harvest.best is None else _model(harvest, harvest.best),
        dataset=dataset,
        formulas=dict(sorted(formulas.items())),
        elements=tuple(sorted({s for item in labelled for s in item.frame.species})),
    )
    target.put(f"{key}.json", entry.model_dump_json(indent=1).encode())
    return entry


def _labelled(store: Store, dataset: Ref) -> list[Labelled]:
    return load_dataset(partial(fetch, store), dataset)


def _condition(stage: Stage) -> str:
    low, high = min(stage.temperatures), max(stage.temperatures)
    heat = f"{low:g} K" if low == high else f"{low:g}–{high:g} K"
    pressures = f" {min(stage.pressures):g}–{max(stage.pressures):g} bar" if stage.pressures else ""
    return f"{', '.join(stage.systems)} {heat}{pressures}"


def _model(harvest: CampaignResults, best: MemberTrained) -> LibraryModel:
    return LibraryModel(
        ref=best.model,
        type_map=harvest.spec.type_map,
        final=harvest.final is not None,
        train=best.train,
        held_out=best.test or best.audit,
    )


# ------------------------------------------------------------------------------ find


@library.command()
def find(
    library: Library,
    elements: Annotated[
        str, typer.Option(metavar="LIST", help="What your system is made of, e.g. Cu,Au.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIGEST",
            help="Only what was labelled by this recipe: a file, or a digest.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Fetch them: models, and the labels as one dataset for `initial.data`.",
        ),
    ] = None,
) -> None:
    """Look up models that know all these elements, then labels made of them alone.

    A recipe is compared composition by composition: a campaign that labels some system by inputs
    of its own (systems.NAME.label) shares the labels of the others. The digest of one composition's
    labels does too.

    With -o the models and labels are fetched; labels of several recipes are never mixed: name one
    by --recipe.

    Exit status: 0 something was found, 1 nothing.

    Example: dpstream library find --elements Cu,Au --library s3://group/library -o found
    """
    asked = {symbol.strip() for symbol in elements.split(",") if symbol.strip()}
    fits = _fitting(recipe)
    with within(library):
        store = there(library, "--library")
        known = list(entries(store))
        models = [e for e in known if _has_model(e, asked, fits)]
        labels = [part for e in known if (part := _part(e, asked, fits)).formulas]
        if not models and not labels:
            say(console, f"{library}: nothing of {', '.join(sorted(asked))}")
            raise typer.Exit(1)
        for table in _found(models, labels):
            console.print(table)
        if output is not None:
            if recipe is None or not _is_file(recipe):
                _check_one_recipe(labels)
            _fetch(store, models, labels, output)


def entries(store: Store) -> Iterator[LibraryEntry]:
    """Raises StoreError naming an object that is no entry."""
    for key in store.list(PREFIX):
        if key.endswith(".json"):
            try:
                yield LibraryEntry.model_validate_json(store.get(key, most=LARGEST))
            except ValidationError as error:
                raise StoreError(f"{key}: is no entry of a library") from error


Fits = Callable[[Recipe, str], bool]
"""Whether the labels by a recipe of one composition are what is looked for."""


@dataclass(frozen=True)
class LibraryMatch:
    """What is looked for among the labels of an entry: frames by composition."""

    entry: LibraryEntry
    formulas: dict[str, int]


def _fitting(wanted: str | None) -> Fits:
    """By a file, or by how a digest begins: a whole recipe's, or that of one composition."""
    if wanted is None:
        return lambda recipe, formula: True
    if _is_file(wanted):
        given = read_recipe(Path(wanted))[0].recipe
        return lambda recipe, formula: _own(recipe, formula) == _own(given, formula)
    return lambda recipe, formula: any(
        digest.startswith(wanted) for digest in (recipe.digest, _own(recipe, formula))
    )


def _is_file(recipe: str) -> bool:
    return bool(Path(recipe).suffix)


def _own(recipe: Recipe, formula: str) -> str:
    """The digest that the labels of one composition are kept under."""
    return recipe.of(formula, electrons(Formula(formula))).digest


def _has_model(entry: LibraryEntry, asked: set[str], fits: Fits) -> bool:
    """A model of all these elements, all whose labels are what is looked for."""
    if entry.model is None or not asked <= set(entry.model.type_map):
        return False
    return all(fits(entry.recipe, formula) for formula in entry.formulas)


def _part(entry: LibraryEntry, asked: set[str], fits: Fits) -> LibraryMatch:
    """Its labels of these elements alone."""
    return LibraryMatch(
        entry,
        {
            formula: count
            for formula, count in entry.formulas.items()
            if set(Formula(formula)) <= asked and fits(entry.recipe, formula)
        },
    )


def _check_one_recipe(labels: Sequence[LibraryMatch]) -> None:
    """Raises SpecError for labels of recipes that differ otherwise than in the inputs of single
    compositions, or in those of the same one."""
    bare = {part.entry.recipe.model_copy(update={"compositions": {}}).digest for part in labels}
    own = {(formula, _own(p.entry.recipe, formula)) for p in labels for formula in p.formulas}
    if len(bare) > 1 or len(own) > len({formula for formula, _ in own}):
        recipes = {part.entry.recipe.digest: _recipe(part.entry.recipe) for part in labels}
        those = ", ".join(recipes.values())
        raise SpecError(f"--recipe: labels of {len(recipes)} recipes: {those}; name one")


def _found(
    models: Sequence[LibraryEntry], labels: Sequence[LibraryMatch]
) -> Iterator[RenderableType]:
    if models:
        table = text_table("model of", "elements", "force error", "grown at", "recipe")
        for e in models:
            assert e.model is not None
            table.add_row(
                e.campaign,
                " ".join(e.model.type_map),
                _error(e.model),
                "; ".join(e.conditions),
                _recipe(e.recipe),
            )
        yield table
    if labels:
        table = text_table("labels of", "frames", "compositions", "recipe")
        for part in labels:
            table.add_row(
                part.entry.campaign,
                str(sum(part.formulas.values())),
                " ".join(part.formulas),
                _recipe(part.entry.recipe),
            )
        yield table


def _error(model: LibraryModel) -> str:
    if model.held_out is None:
        return f"{model.train.force:.3g} eV/Å (training)"
    return f"{model.held_out.force:.3g} eV/Å (unseen)"


def _recipe(recipe: Recipe) -> str:
    return f"{CODES[recipe.code].method(recipe.settings)} {recipe.digest}"


def _fetch(
    store: Store, models: Sequence[LibraryEntry], labels: Sequence[LibraryMatch], folder: Path
) -> None:
    claim(folder, "library find")
    (folder / "models").mkdir(exist_ok=True)
    for e in models:
        assert e.model is not None
        path = folder / "models" / f"{e.campaign}{Path(e.model.ref.uri).suffix}"
        path.write_bytes(fetch(store, e.model.ref))
        say(console, f"{path}: the model of {e.campaign}")
    labelled = [item for part in labels for item in _labelled_part(store, part)]
    unique = {frame_key(item.frame): item for item in labelled}
    found = [part.entry for part in labels]
    recipes = {e.recipe.digest: _recipe(e.recipe) for e in found}
    about = {"campaigns": [e.campaign for e in found], "recipes": recipes}
    symbols = sorted({symbol for item in labelled for symbol in item.frame.species})
    say(console, write_dataset(list(unique.values()), folder, "library find", symbols, **about))


def _labelled_part(store: Store, part: LibraryMatch) -> Iterator[Labelled]:
    for item in _labelled(store, part.entry.dataset):
        if item.frame.formula in part.formulas:
            yield item
