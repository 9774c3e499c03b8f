"""What several commands ask for, and how it is looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from pydantic import ValidationError

from dpstream.dpgen.load import load_campaign
from dpstream.inputs.check_installed import check_engines, check_program
from dpstream.inputs.gather import Gathered, gather
from dpstream.inputs.label_inputs import with_label_inputs
from dpstream.inputs.systems import SystemStructures
from dpstream.running.connection import is_folder, open_store
from dpstream.services.coordinator.ledger.ledger import campaigns
from dpstream.services.coordinator.ledger.submission import stored_spec
from dpstream.services.labeler.recipes import make_recipe, read_files
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.errors import CorruptLedger, SpecError, StoreError
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec, expand_material
from dpstream.shared.spec.errors import did_you_mean, explain
from dpstream.shared.values import Recipe

DEFAULT_ROOT = "runs"
MOST_WORKERS = 64
"""Of one service: each has a warm engine of some 0.5 GB."""
SpecFile = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC",
        help="Campaign spec, YAML or JSON; `dpstream new` writes one to edit. DP-GEN's param.json "
        "will do too.",
    ),
]
MachineFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MACHINE]", help="DP-GEN's machine file: checked, and told what becomes of it."
    ),
]
Code = Annotated[
    str | None,
    typer.Option(
        metavar="CODE",
        help="With DP-GEN's param.json: label with this code and its own defaults instead of what "
        "fp_style asks for.",
    ),
]
Root = Annotated[
    str,
    typer.Option(
        "--root",
        "--store",
        envvar="DPSTREAM_STORE",
        metavar="DIR|URL",
        help="Where all campaigns are, and the labels they share: a folder, or s3://bucket/prefix "
        "(endpoint, region and keys by DPSTREAM_STORE_…).",
    ),
]
Broker = Annotated[
    str | None,
    typer.Option(
        envvar="DPSTREAM_BROKER",
        metavar="URL",
        help="Message broker of a deployment, amqp://user:password@host:port/vhost "
        "(certificates by DPSTREAM_BROKER_…).",
        show_envvar=True,
    ),
]
Campaign = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Campaign; may be left out when there is only one."),
]
Mode = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="lockstep (DP-GEN's rounds, reproducible) or streaming (no barriers), instead of "
        "the spec's.",
    ),
]
NewName = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Campaign name, instead of the spec's: the same spec begun anew.",
    ),
]


def prepared(
    path: Path, mode: str | None, name: str | None, engines: bool = True, code: str | None = None
) -> tuple[Spec, Gathered, Recipe]:
    """Everything checked that can be checked before anything starts; `engines` are to be here."""
    given = {key: value for key, value in (("mode", mode), ("name", name)) if value is not None}
    loaded = load_campaign(path, code)
    try:
        spec = Spec.model_validate({**loaded.model_dump(), **given})
    except ValidationError as error:
        raise SpecError(f"--{explain(error, Spec)}") from error
    try:
        return checked(spec, path.parent, engines)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def checked(
    spec: Spec,
    folder: Path,
    engines: bool = True,
    given: Mapping[str, Sequence[Frame]] = MappingProxyType({}),
) -> tuple[Spec, Gathered, Recipe]:
    """What `spec` names, relative to `folder`, read and checked; `given`: structures of systems
    that are read already."""
    labels, attachments = read_files(spec.labels, folder)
    structures = SystemStructures(spec, folder, given)
    spec = with_label_inputs(spec.model_copy(update={"labels": labels}), structures)
    recipe = make_recipe(spec.labels)
    if engines:
        check_engines(spec)
        check_program(recipe)
    gathered = gather(spec, folder, not engines, structures)
    return expand_material(spec), replace(gathered, attachments=attachments), recipe


@contextmanager
def within(root: str) -> Iterator[None]:
    """Errors of a store and its ledgers name the place they are in."""
    try:
        yield
    except CorruptLedger as error:
        raise SpecError(f"{root}: {error}; restore it, or begin anew with --name") from error
    except StoreError as error:
        raise SpecError(f"{root}: {error}") from error


def there(root: str, option: str = "--root") -> Store:
    """The store at `root`, which is to be there already. Makes no folder."""
    path = Path(root)
    if is_folder(root) and not path.is_dir():
        found = "is a file" if path.exists() else "no such folder"
        hint = "; campaigns are in the --root they were run with" if option == "--root" else ""
        raise SpecError(f"{option}: {root}: {found}{hint}")
    return open_store(root)


def named(campaign: str | None, root: str) -> tuple[Store, str]:
    """The store at `root`, and the campaign that is meant."""
    store = there(root)
    known = campaigns(store)
    if campaign is None and len(known) == 1:
        campaign = known[0]
    if campaign not in known:
        raise SpecError(f"--root: {root}: {_unnamed(campaign, known)}")
    stored_spec(store, campaign)
    return store, campaign


def _unnamed(campaign: str | None, known: list[str]) -> str:
    if not known:
        return "holds no campaign; dpstream run SPEC begins one"
    those = ", ".join(known)
    if campaign is None:
        return f"holds several campaigns; name one of {those}"
    return f"no campaign {campaign!r}{did_you_mean(campaign, known)}; there are: {those}"


def parse_workers(text: str, services: Sequence[str], least: int) -> dict[str, int]:
    """`trainer=1,labeler=2` as numbers by service, `least` or more of each. Raises `SpecError`."""
    crew: dict[str, int] = {}
    for part in text.split(","):
        service, _, count = (piece.strip() for piece in part.partition("="))
        if service not in services or not _is_count(count, least):
            *most, last = (f"{name}=N" for name in services)
            raise SpecError(
                f"--workers: {part!r}: expected {', '.join(most)} or {last} with N from {least} "
                f"to {MOST_WORKERS}, separated by commas"
            )
        crew[service] = int(count)
    return crew


def _is_count(text: str, least: int) -> bool:
    return text.isascii() and text.isdigit() and least <= int(text[:9]) <= MOST_WORKERS
