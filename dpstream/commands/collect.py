"""`dpstream collect`: the labels of one or more campaigns as one dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dpstream.commands.options import DEFAULT_ROOT, Root, named, within
from dpstream.export.dataset_folder import OutputFolder, TypeMap, claim, type_map_for, write_dataset
from dpstream.export.results import CampaignResults
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import frame_key
from dpstream.shared.errors import SpecError
from dpstream.shared.values import Recipe
from dpstream.terminal.console import console, say
from dpstream.terminal.plan import recipe_words

COMMAND = "collect"


def collect(
    campaigns: Annotated[
        list[str], typer.Argument(metavar="CAMPAIGN...", help="Campaigns under --root.")
    ],
    output: OutputFolder = Path("collected"),
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="Only campaigns labelled by this recipe: its digest, or how it begins.",
        ),
    ] = None,
    mix: Annotated[
        bool,
        typer.Option(
            "--mix-recipes",
            help="Take labels of different recipes together. Their energies differ: seldom wanted.",
        ),
    ] = False,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="Also audit and held-out labels, which no campaign trained on."
        ),
    ] = False,
    type_map: TypeMap = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """All labels of one or more campaigns as one dataset: DeePMD-kit systems and extxyz.

    A frame that several campaigns share comes in once. Campaigns of different recipes are refused,
    because one model cannot learn two energies of one frame: choose one by --recipe, or say
    --mix-recipes. Imported sets count with the recipe of
    their campaign, against which they were checked.

    Example: dpstream collect copper copper-hot -o copper-all
    """
    with within(root):
        yields = [_yield(name, root, audit) for name in dict.fromkeys(campaigns)]
        chosen = _of_recipe(yields, recipe, mix)
        labelled = list(_unique(chosen))
    default = list(dict.fromkeys(symbol for y in chosen for symbol in y.type_map))
    elements = {symbol for item in labelled for symbol in item.frame.species}
    symbols = type_map_for(type_map, default, elements)
    claim(output, COMMAND)
    for y in chosen:
        say(console, f"{y.campaign}: {len(y.labelled)} labels, {recipe_words(y.recipe)}")
    say(console, write_dataset(labelled, output, COMMAND, symbols, **_about(chosen)))


@dataclass(frozen=True)
class CampaignLabels:
    """What one campaign has to give."""

    campaign: str
    recipe: Recipe
    type_map: tuple[str, ...]
    labelled: list[Labelled]


def _yield(campaign: str, root: str, audit: bool) -> CampaignLabels:
    store, name = named(campaign, root)
    harvest = CampaignResults.of(store, name)
    if harvest.recipe is None:
        raise SpecError(f"{name}: has not begun: nothing is labelled")
    labelled = harvest.training_set()
    if audit:
        labelled += [*harvest.audit_set(), *harvest.test_set()]
    return CampaignLabels(name, harvest.recipe, harvest.spec.type_map, labelled)


def _of_recipe(
    yields: Sequence[CampaignLabels], recipe: str | None, mix: bool
) -> Sequence[CampaignLabels]:
    """Those to be taken together; `SpecError` where more than one recipe is among them."""
    if recipe is not None:
        found = [y for y in yields if y.recipe.digest.startswith(recipe)]
        if not found:
            raise SpecError(f"--recipe: {recipe!r}: no such recipe; there are: {_recipes(yields)}")
        yields = found
    if len({y.recipe.digest for y in yields}) > 1 and not mix:
        raise SpecError(
            f"CAMPAIGN: labelled by different recipes: {_recipes(yields)}; choose one by --recipe, "
            "or say --mix-recipes"
        )
    return yields


def _recipes(yields: Sequence[CampaignLabels]) -> str:
    return ", ".join(f"{y.recipe.digest} ({y.recipe.code}, {y.campaign})" for y in yields)


def _unique(yields: Sequence[CampaignLabels]) -> Iterator[Labelled]:
    """Each frame once by each recipe, the first campaign's."""
    seen: set[tuple[str, str]] = set()
    for y in yields:
        for item in y.labelled:
            identity = (y.recipe.digest, frame_key(item.frame))
            if identity not in seen:
                seen.add(identity)
                yield item


def _about(yields: Sequence[CampaignLabels]) -> dict[str, Any]:
    recipes = {y.recipe.digest: y.recipe.model_dump() for y in yields}
    counts = {y.campaign: len(y.labelled) for y in yields}
    return {"recipes": recipes, "campaigns": counts}
