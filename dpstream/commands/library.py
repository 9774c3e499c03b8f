"""`dpstream library`: shares models and labels between groups, in a folder or a bucket.

A campaign contributes one entry, `library/<campaign>-<spec>.json`, and the objects that it names.
Objects keep their keys, so a library is also a store: a campaign that runs with it as --store finds
its labels in the cache.
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
from dpstream.running.recipe_file import recipe_of
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
from dpstream.terminal.console import console, print_line
from dpstream.terminal.tables import text_table

PREFIX = "library/"
LARGEST = 1 << 20
"""Largest size of an entry, in bytes."""

library = typer.Typer(
    help="Share models and labels between groups, in a folder or a bucket.",
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
    """A trained model. `held_out`: its errors on frames outside its training set."""

    ref: Ref
    type_map: tuple[str, ...]
    final: bool
    train: Rmse
    held_out: Rmse | None = None


class LibraryEntry(Value):
    """The contribution of one campaign: its best model, and its labels as a dataset manifest."""

    campaign: str
    recipe: Recipe
    conditions: tuple[str, ...] = Field(description="stages explored during training")
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
    """Add a campaign: its best model and all its labels, including imported sets.

    Adding it again later copies only what is new.

    Example: dpstream library add copper --library s3://group/library
    """
    with within(root):
        source, name = named(campaign, root)
        results = CampaignResults.of(source, name)
    if results.recipe is None:
        raise SpecError(f"{name}: the campaign has not started, so there is nothing to add")
    with within(library):
        target = open_store(library)
        copied = sum(_copy(results, ref, target) for ref in _objects(results))
        entry = _enter(results, results.recipe, target)
    model = "no model" if entry.model is None else f"1 model ({', '.join(entry.model.type_map)})"
    print_line(
        console, f"{name}: {entry.frames} labels, {model}; {copied} new objects in {library}"
    )


def _objects(results: CampaignResults) -> Iterator[Ref]:
    manifest = _manifest(results)
    yield from manifest.packs
    yield from manifest.labels
    if results.best is not None:
        yield results.best.model


def _copy(results: CampaignResults, ref: Ref, target: Store) -> bool:
    """Copy an object unless it exists; objects never change. Returns whether it was copied."""
    return not target.exists(ref.uri) and target.create(ref.uri, results.fetch(ref))


def _manifest(results: CampaignResults) -> Dataset:
    """All labels of the campaign, including audit labels, and its imported sets."""
    assert results.history.submitted is not None
    lives = results.history.lives.values()
    accepted = {life.ref.key: life.accepted.label for life in lives if life.accepted is not None}
    labels = tuple(accepted[key] for key in sorted(accepted))
    return Dataset(version=0, packs=results.history.submitted.packs, labels=labels)


def _enter(results: CampaignResults, recipe: Recipe, target: Store) -> LibraryEntry:
    spec = Ref.to("spec", results.spec_bytes).sha256[:12]
    key = f"{PREFIX}{results.campaign}-{spec}"
    body = _manifest(results).model_dump_json().encode()
    dataset = Ref.to(f"{key}.dataset", body)
    target.put(dataset.uri, body)
    labelled = _labelled(target, dataset)
    formulas = Counter(item.frame.formula for item in labelled)
    entry = LibraryEntry(
        campaign=results.campaign,
        recipe=recipe,
        conditions=tuple(map(_condition, results.spec.stages)),
        model=None if results.best is None else _model(results, results.best),
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
    temperature = f"{low:g} K" if low == high else f"{low:g}–{high:g} K"
    pressures = f" {min(stage.pressures):g}–{max(stage.pressures):g} bar" if stage.pressures else ""
    return f"{', '.join(stage.systems)} {temperature}{pressures}"


def _model(results: CampaignResults, best: MemberTrained) -> LibraryModel:
    return LibraryModel(
        ref=best.model,
        type_map=results.spec.type_map,
        final=results.final is not None,
        train=best.train,
        held_out=best.test or best.audit,
    )


# ------------------------------------------------------------------------------ find


@library.command()
def find(
    library: Library,
    elements: Annotated[
        str, typer.Option(metavar="LIST", help="Elements of your system, e.g. Cu,Au.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIGEST", help="Only models and labels of this recipe: a file or a digest."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder to fetch into: the models, and the labels as one dataset for "
            "`initial.data`.",
        ),
    ] = None,
) -> None:
    """List models that include all of --elements, and labels of frames without other elements.

    Recipes are compared separately for each chemical composition. If a campaign sets
    systems.NAME.label for one system, the labels of its other systems still match. --recipe also
    accepts the digest of one composition.

    With -o the models and labels are fetched. Labels of different recipes are never mixed: choose
    one with --recipe.

    Exit status: 0 something was found, 1 nothing was found.

    Example: dpstream library find --elements Cu,Au --library s3://group/library -o found
    """
    wanted = {symbol.strip() for symbol in elements.split(",") if symbol.strip()}
    fits = _fitting(recipe)
    with within(library):
        store = there(library, "--library")
        known = list(entries(store))
        models = [e for e in known if _has_model(e, wanted, fits)]
        labels = [match for e in known if (match := _match(e, wanted, fits)).formulas]
        if not models and not labels:
            print_line(console, f"{library}: no models or labels for {', '.join(sorted(wanted))}")
            raise typer.Exit(1)
        for table in _tables(models, labels):
            console.print(table)
        if output is not None:
            if recipe is None or not _is_file(recipe):
                _check_one_recipe(labels)
            _fetch(store, models, labels, output)


def entries(store: Store) -> Iterator[LibraryEntry]:
    """All entries of a library. Raises StoreError naming an object that is not one."""
    for key in store.list(PREFIX):
        if key.endswith(".json"):
            try:
                yield LibraryEntry.model_validate_json(store.get(key, most=LARGEST))
            except ValidationError as error:
                raise StoreError(f"{key}: not a valid library entry") from error


Fits = Callable[[Recipe, str], bool]
"""Whether the labels of one composition, computed with a recipe, match the search."""


@dataclass(frozen=True)
class LibraryMatch:
    """The labels of an entry that match the search: number of frames by composition."""

    entry: LibraryEntry
    formulas: dict[str, int]


def _fitting(wanted: str | None) -> Fits:
    """Compare with a recipe file, or with the first characters of a digest: of a whole recipe or
    of one composition."""
    if wanted is None:
        return lambda recipe, formula: True
    if _is_file(wanted):
        own = recipe_of(Path(wanted))
        return lambda recipe, formula: _digest(recipe, formula) == _digest(own, formula)
    return lambda recipe, formula: any(
        digest.startswith(wanted) for digest in (recipe.digest, _digest(recipe, formula))
    )


def _is_file(recipe: str) -> bool:
    return bool(Path(recipe).suffix)


def _digest(recipe: Recipe, formula: str) -> str:
    """The digest under which the labels of one composition are stored."""
    return recipe.of(formula, electrons(Formula(formula))).digest


def _has_model(entry: LibraryEntry, elements: set[str], fits: Fits) -> bool:
    """Whether the entry's model covers all these elements and all its labels match."""
    if entry.model is None or not elements <= set(entry.model.type_map):
        return False
    return all(fits(entry.recipe, formula) for formula in entry.formulas)


def _match(entry: LibraryEntry, elements: set[str], fits: Fits) -> LibraryMatch:
    """The matching labels of the entry that contain no other elements."""
    return LibraryMatch(
        entry,
        {
            formula: count
            for formula, count in entry.formulas.items()
            if set(Formula(formula)) <= elements and fits(entry.recipe, formula)
        },
    )


def _check_one_recipe(labels: Sequence[LibraryMatch]) -> None:
    """Raises SpecError if the labels cannot be mixed: their recipes differ in more than the inputs
    of single compositions, or in the inputs of the same composition."""
    bare = {match.entry.recipe.model_copy(update={"compositions": {}}).digest for match in labels}
    own = {(formula, _digest(p.entry.recipe, formula)) for p in labels for formula in p.formulas}
    if len(bare) > 1 or len(own) > len({formula for formula, _ in own}):
        recipes = {match.entry.recipe.digest: _recipe(match.entry.recipe) for match in labels}
        names = ", ".join(recipes.values())
        raise SpecError(f"--recipe: labels of {len(recipes)} recipes match: {names}; choose one")


def _tables(
    models: Sequence[LibraryEntry], labels: Sequence[LibraryMatch]
) -> Iterator[RenderableType]:
    if models:
        table = text_table("model of", "elements", "force error", "explored at", "recipe")
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
        for match in labels:
            table.add_row(
                match.entry.campaign,
                str(sum(match.formulas.values())),
                " ".join(match.formulas),
                _recipe(match.entry.recipe),
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
        print_line(console, f"{path}: the model of {e.campaign}")
    labelled = [item for match in labels for item in _labelled_part(store, match)]
    unique = {frame_key(item.frame): item for item in labelled}
    entries_used = [match.entry for match in labels]
    recipes = {e.recipe.digest: _recipe(e.recipe) for e in entries_used}
    about = {"campaigns": [e.campaign for e in entries_used], "recipes": recipes}
    symbols = sorted({symbol for item in labelled for symbol in item.frame.species})
    print_line(
        console, write_dataset(list(unique.values()), folder, "library find", symbols, **about)
    )


def _labelled_part(store: Store, match: LibraryMatch) -> Iterator[Labelled]:
    for item in _labelled(store, match.entry.dataset):
        if item.frame.formula in match.formulas:
            yield item
