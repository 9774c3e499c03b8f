"""Writes the files that give each user its rights on broker and store: passwords, broker
definitions and bucket policies."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpstream.deploy.rights import (
    ADMIN,
    DIALECTS,
    Deployment,
    Secrets,
    definitions,
    fleet_policy,
    identities,
    policy,
)
from dpstream.services.coordinator.fleet.pools import FleetFile
from dpstream.services.labeler.signatures import Signers, new_key, public_key
from dpstream.shared.access import LABELS, ROLES, Role, merged
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.files import write_whole
from dpstream.shared.settings import bucket_and_prefix
from dpstream.shared.spec.errors import did_you_mean

PASSWORDS = "passwords.env"
SIGNERS_FILE = "label-signers.json"


TOKEN = "API_TOKEN"


USER = re.compile(r"[a-z][a-z0-9_-]{0,62}")


VHOST = re.compile(r"[A-Za-z0-9._-]{1,60}|/")


BROKER_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,60}")


PRIVATE, PUBLIC = 0o600, 0o644


def write_access(place: Deployment, out: Path, fleet: FleetFile | None = None) -> list[Path]:
    """Write all files to the folder `out` and return their paths. Raises `SpecError`. With a
    `fleet` that has pools of AWS Batch also what the coordinator needs for them."""
    try:
        known, lines = _secrets(place.users, out / PASSWORDS)
        documents = {
            Path("rabbitmq/definitions.json"): (definitions(place, known), PUBLIC),
            Path("seaweedfs/s3.json"): (identities(place, known), PRIVATE),
            Path(SIGNERS_FILE): (_signers(known, out / SIGNERS_FILE).model_dump(), PUBLIC),
        }
        for user, role in place.users.items():
            for provider in ("aws", "alibaba"):
                document = policy(role, place, DIALECTS[provider])
                documents[Path(provider) / f"{user}.json"] = (document, PUBLIC)
        batch = fleet_policy(fleet) if fleet else None
        if batch is not None:
            documents[Path("aws/coordinator-fleet.json")] = (batch, PUBLIC)
        write_whole(out / PASSWORDS, lines, PRIVATE)
        for name, (document, mode) in documents.items():
            write_whole(out / name, json.dumps(document, indent=1) + "\n", mode)
    except OSError as error:
        raise SpecError(f"--output: {error.filename}: {error.strerror}") from error
    return [out / PASSWORDS, *(out / name for name in documents)]


def parse_deployment(
    users: str, bucket: str, prefix: str, vhost: str, broker_prefix: str
) -> Deployment:
    """Parse the options of `dpstream access`. Raises `SpecError`."""
    with errors_at(f"--bucket {bucket!r}, --prefix {prefix!r}", ValueError):
        place = bucket_and_prefix(f"s3://{bucket}/{prefix}")
    assert place is not None
    if not VHOST.fullmatch(vhost):
        raise SpecError(f"--vhost: {vhost!r}: must be letters, digits, '.', '_' and '-', or /")
    if not BROKER_PREFIX.fullmatch(broker_prefix):
        raise SpecError(
            f"--broker-prefix: {broker_prefix!r}: must be letters, digits, '.', '_' and '-'"
        )
    return Deployment(place[0], parse_users(users), place[1], vhost, broker_prefix)


def parse_users(text: str) -> dict[str, Role]:
    """Parse `coordinator,vasp=labeler,me=operator+trainer` to roles by user name."""
    users: dict[str, Role] = {}
    for part in text.split(","):
        name, _, roles = (piece.strip() for piece in part.partition("="))
        taken = {variable(each, "") for each in (ADMIN, *users)}
        if not USER.fullmatch(name) or variable(name, "") in taken:
            raise SpecError(
                f"--users: {part!r}: must be unique names of a-z, 0-9, '-' and '_' that begin with "
                f"a letter, other than {ADMIN}; '-' and '_' count as the same"
            )
        users[name] = merged([_role(each.strip()) for each in (roles or name).split("+")])
    return users


def with_pools(users: str, fleet: FleetFile | None) -> str:
    """The list `users` with a user of its own for each pool of a fleet file. A pool with the name
    of its service has the user of that service. Raises SpecError for a name that is no user's."""
    pools = {} if fleet is None else fleet.pools
    own = {name: pool.service for name, pool in pools.items() if name != pool.service}
    taken = {ADMIN, *ROLES, *(part.partition("=")[0].strip() for part in users.split(","))}
    for name in own:
        if not USER.fullmatch(name) or variable(name, "") in {variable(each, "") for each in taken}:
            raise SpecError(
                f"--fleet: pools.{name}: the pool gives its name to a user: a-z, 0-9, '-' and '_', "
                "beginning with a letter; not the name of another user or role ('-' and '_' count "
                f"as the same). Only a pool of the service {own[name]} may be called {own[name]}"
            )
        taken.add(name)
    return ",".join((users, *(f"{name}={service}" for name, service in own.items())))


def _role(name: str) -> str:
    if name not in ROLES:
        raise SpecError(
            f"--users: unknown role {name!r}{did_you_mean(name, list(ROLES))}; roles: "
            f"{', '.join(ROLES)}"
        )
    return name


def _secrets(users: Mapping[str, Role], file: Path) -> tuple[dict[str, Secrets], str]:
    """The secrets of all users, existing ones from `file` or new ones, and the file's new text."""
    kept = read_passwords(file)

    def keep(name: str, make: Callable[[int], str]) -> str:
        return kept.setdefault(name, make(30))

    known = {
        user: Secrets(
            password=keep(variable(user, "PASSWORD"), secrets.token_urlsafe),
            access_key=keep(variable(user, "ACCESS_KEY"), lambda _: secrets.token_hex(10)),
            secret_key=keep(variable(user, "SECRET_KEY"), secrets.token_urlsafe),
            signing_key=keep(variable(user, "SIGNING_KEY"), lambda _: new_key())
            if role is not None and LABELS in role.creates
            else None,
        )
        for user, role in {ADMIN: None, **users}.items()
    }
    for user in users:
        if "_" in user:  # in names of variables, as a hyphen is
            kept[variable(user, "USER")] = user
    keep(TOKEN, secrets.token_urlsafe)
    return known, _lines(kept)


def _signers(known: Mapping[str, Secrets], file: Path) -> Signers:
    """The public keys in `file` and those of all users. Raises SpecError."""
    with errors_at(str(file), ValueError):
        earlier = Signers.model_validate_json(file.read_bytes()) if file.exists() else Signers()
    keys = {
        public_key(each.signing_key): user
        for user, each in known.items()
        if each.signing_key is not None
    }
    return Signers(keys={**earlier.keys, **keys})


def variable(user: str, what: str) -> str:
    """The name of a variable, e.g. `LABELER_ACCESS_KEY`."""
    return f"{user.replace('-', '_').upper()}_{what}"


def read_passwords(file: Path) -> dict[str, str]:
    """The secrets in a `passwords.env`, by variable."""
    if not file.exists():
        return {}
    pairs = (line.partition("=") for line in file.read_text().splitlines())
    return {name: value for name, separator, value in pairs if separator and name[:1] != "#"}


def _lines(values: Mapping[str, Any]) -> str:
    lines = [f"{name}={value}" for name, value in sorted(values.items())]
    return "\n".join(["# Written by dpstream access.", *lines, ""])
