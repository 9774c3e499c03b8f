"""Arguments and options that several commands share, and how they are resolved.

`there` and `named` open an existing store and campaign; `within` adds the store's location to
errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dpstream.running.connection import is_folder, open_store
from dpstream.services.coordinator.ledger.ledger import campaigns
from dpstream.services.coordinator.ledger.submission import stored_spec
from dpstream.shared.errors import CorruptLedger, SpecError, StoreError
from dpstream.shared.ports import Store
from dpstream.shared.spec.errors import did_you_mean

DEFAULT_ROOT = "runs"
FIRST = "type dpstream run SPEC first"
MOST_WORKERS = 64
"""Per service. Each worker keeps an engine of about 0.5 GB in memory."""
SpecFile = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC",
        help="Campaign spec (YAML or JSON; `dpstream new` writes a template), or DP-GEN's "
        "param.json (JSON or YAML).",
    ),
]
MachinePath = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MACHINE]",
        help="DP-GEN's machine file, only with param.json. The command of fp is used if its "
        "program is installed here.",
    ),
]
Code = Annotated[
    str | None,
    typer.Option(
        metavar="CODE",
        help="With DP-GEN's param.json: label with this code and its defaults instead of fp_style.",
    ),
]
Root = Annotated[
    str,
    typer.Option(
        "--store",
        "--root",
        envvar="DPSTREAM_STORE",
        metavar="DIR|URL",
        help="Store of all campaigns and their shared labels: a folder, or s3://bucket/prefix "
        "(endpoint, region and keys from DPSTREAM_STORE_…).",
    ),
]
Broker = Annotated[
    str | None,
    typer.Option(
        envvar="DPSTREAM_BROKER",
        metavar="URL",
        help="Message broker of a deployment, amqp://user:password@host:port/vhost "
        "(certificates from DPSTREAM_BROKER_…).",
        show_envvar=True,
    ),
]
Campaign = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Campaign; optional if there is only one.")
]
Mode = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="Overrides the spec's mode: lockstep (rounds as in DP-GEN, reproducible) or streaming "
        "(selects, labels and trains while trajectories run).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CrossCheck = Annotated[
    bool,
    typer.Option(
        "--cross-check/--no-cross-check",
        help="Compute a few imported labels again and compare them, before anything else.",
    ),
]
CheckHere = Annotated[
    bool,
    typer.Option(
        "--cross-check/--no-cross-check",
        help="Compute a few imported labels again on this machine and compare them with the "
        "recipe.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Turn refusals of absurd numbers, of keywords that give no label and of a small sel "
        "into warnings.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        min=0.0,
        max=3600.0,
        metavar="SECONDS",
        help="How long to wait for the coordinator's answer.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
NewName = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Overrides the spec's campaign name, e.g. to start the same spec afresh.",
    ),
]


@contextmanager
def within(root: str) -> Iterator[None]:
    """Prefix errors of a store and its ledgers with the store's location."""
    try:
        yield
    except CorruptLedger as error:
        raise SpecError(
            f"{root}: {error}; next: dpstream repair NAME lists what can be recovered"
        ) from error
    except StoreError as error:
        raise SpecError(f"{root}: {error}") from error


def there(root: str, option: str = "--store") -> Store:
    """Open the store at `root`, which must exist. Raises `SpecError` naming `option` otherwise."""
    path = Path(root)
    if is_folder(root) and not path.is_dir():
        problem = "not a folder" if path.exists() else "no such folder"
        first = "give the store of the" if path.exists() else f"{FIRST}, give the store of a"
        hint = f"; {first} campaign, or set DPSTREAM_STORE" if option == "--store" else ""
        raise SpecError(f"{option}: {root}: {problem}{hint}")
    return open_store(root)


def named(campaign: str | None, root: str) -> tuple[Store, str]:
    """The store at `root` and the name of the campaign, which may be omitted if it is the only
    one. Raises `SpecError` listing the campaigns otherwise."""
    store, name = resolved(campaign, root)
    stored_spec(store, name)
    return store, name


def resolved(campaign: str | None, root: str) -> tuple[Store, str]:
    """As `named`, also where the campaign's spec cannot be read."""
    store = there(root)
    known = campaigns(store)
    if campaign is None and len(known) == 1:
        campaign = known[0]
    if campaign not in known:
        raise SpecError(f"--store: {root}: {_unresolved(campaign, known)}")
    return store, campaign


def _unresolved(campaign: str | None, known: list[str]) -> str:
    if not known:
        return "contains no campaign; start one with dpstream run SPEC"
    names = ", ".join(known)
    if campaign is None:
        return f"contains several campaigns; give one of {names}"
    return f"no campaign {campaign!r}{did_you_mean(campaign, known)}; campaigns: {names}"


def parse_workers(text: str, services: Sequence[str], least: int) -> dict[str, int]:
    """Parse `trainer=1,labeler=2` to a count per service, each at least `least`. Raises
    `SpecError`."""
    crew: dict[str, int] = {}
    for part in text.split(","):
        service, _, count = (piece.strip() for piece in part.partition("="))
        if service not in services or not _is_count(count, least):
            *most, last = (f"{name}=N" for name in services)
            raise SpecError(
                f"--workers: {part!r}: must be {', '.join(most)} or {last} with N from {least} "
                f"to {MOST_WORKERS}, separated by commas"
            )
        crew[service] = int(count)
    return crew


def _is_count(text: str, least: int) -> bool:
    return text.isascii() and text.isdigit() and least <= int(text[:9]) <= MOST_WORKERS
