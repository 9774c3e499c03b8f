"""`dpstream collect`: merges the labels of one or more campaigns into one dataset.

Reads each campaign's ledger and labels from the store, removes duplicate frames, and writes
DeePMD-kit systems and extxyz. Labels of different recipes are mixed on request only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dpstream.commands.options import DEFAULT_ROOT, Root, named, within
from dpstream.export.dataset_folder import OutputFolder, TypeMap, claim, type_map_for, write_dataset
from dpstream.export.results import CampaignResults
from dpstream.inputs.reading.sets import check_one_energy
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import frame_key
from dpstream.shared.errors import SpecError
from dpstream.shared.values import ImportedSet, Recipe
from dpstream.terminal.console import console, print_line
from dpstream.terminal.plan import recipe_words

COMMAND = "collect"


def collect(
    campaigns: Annotated[
        list[str], typer.Argument(metavar="CAMPAIGN...", help="Campaigns in --store.")
    ],
    output: OutputFolder = Path("collected"),
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="Only campaigns labelled with this recipe: its digest, or the first characters.",
        ),
    ] = None,
    mix: Annotated[
        bool,
        typer.Option(
            "--mix-recipes",
            help="Combine labels of different recipes. Their energies are not comparable, so this "
            "is rarely wanted.",
        ),
    ] = False,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="Include audit and held-out labels, which no campaign trained on."
        ),
    ] = False,
    type_map: TypeMap = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Merge the labels of campaigns into one dataset: DeePMD-kit systems and extxyz.

    A frame that occurs in several campaigns is written once. Campaigns with different recipes are
    refused, because one model cannot learn two energies of the same frame: choose one with
    --recipe, or give --mix-recipes. Imported sets count as labelled with the recipe of their
    campaign, against which they were checked.

    Example: dpstream collect copper copper-hot -o copper-all
    """
    with within(root):
        selected = [_campaign_labels(name, root, audit) for name in dict.fromkeys(campaigns)]
        chosen = _of_recipe(selected, recipe, mix)
        if not mix:
            _check_energies(chosen)
        labelled = list(_unique(chosen))
    default = list(dict.fromkeys(symbol for y in chosen for symbol in y.type_map))
    elements = {symbol for item in labelled for symbol in item.frame.species}
    symbols = type_map_for(type_map, default, elements)
    claim(output, COMMAND)
    for y in chosen:
        print_line(console, f"{y.campaign}: {len(y.labelled)} labels, {recipe_words(y.recipe)}")
    print_line(console, write_dataset(labelled, output, COMMAND, symbols, **_about(chosen)))


@dataclass(frozen=True)
class CampaignLabels:
    """The labels of one campaign, the recipe that computed them, and the sources of imported
    ones."""

    campaign: str
    recipe: Recipe
    type_map: tuple[str, ...]
    labelled: list[Labelled]
    imported: tuple[ImportedSet, ...] = ()


def _campaign_labels(campaign: str, root: str, audit: bool) -> CampaignLabels:
    store, name = named(campaign, root)
    results = CampaignResults.of(store, name)
    if results.recipe is None:
        raise SpecError(f"{name}: the campaign has not started, so it has no labels")
    labelled = results.training_set()
    if audit:
        labelled += [*results.audit_set(), *results.test_set()]
    submitted = results.history.submitted
    imported = submitted.imported if submitted else ()
    return CampaignLabels(name, results.recipe, results.spec.type_map, labelled, imported)


def _of_recipe(
    selected: Sequence[CampaignLabels], recipe: str | None, mix: bool
) -> Sequence[CampaignLabels]:
    """The campaigns to merge. Raises `SpecError` if they have more than one recipe."""
    if recipe is not None:
        matching = [y for y in selected if y.recipe.digest.startswith(recipe)]
        if not matching:
            raise SpecError(f"--recipe: {recipe!r}: unknown recipe; known: {_recipes(selected)}")
        selected = matching
    if len({y.recipe.digest for y in selected}) > 1 and not mix:
        raise SpecError(
            f"CAMPAIGN: labelled with different recipes: {_recipes(selected)}; choose one with "
            "--recipe, or give --mix-recipes"
        )
    return selected


def _check_energies(selected: Sequence[CampaignLabels]) -> None:
    """Raises `SpecError` if the sets that were imported have different kinds of energies."""
    kinds: dict[str, str] = {}
    for y in selected:
        for each in y.imported:
            for kind in each.energies:
                kinds.setdefault(kind, f"{y.campaign} ({each.name})")
    check_one_energy(kinds, "CAMPAIGN")


def _recipes(selected: Sequence[CampaignLabels]) -> str:
    return ", ".join(f"{y.recipe.digest} ({y.recipe.code}, {y.campaign})" for y in selected)


def _unique(selected: Sequence[CampaignLabels]) -> Iterator[Labelled]:
    """Each frame once per recipe, from the first campaign that has it."""
    seen: set[tuple[str, str]] = set()
    for y in selected:
        for item in y.labelled:
            identity = (y.recipe.digest, frame_key(item.frame))
            if identity not in seen:
                seen.add(identity)
                yield item


def _about(selected: Sequence[CampaignLabels]) -> dict[str, Any]:
    recipes = {y.recipe.digest: y.recipe.model_dump() for y in selected}
    counts = {y.campaign: len(y.labelled) for y in selected}
    imported = {y.campaign: [s.model_dump() for s in y.imported] for y in selected if y.imported}
    return {"recipes": recipes, "campaigns": counts, "imported": imported}
