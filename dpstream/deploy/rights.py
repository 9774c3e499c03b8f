"""Translates the roles of `shared/access.py` to RabbitMQ permissions, and to bucket policies of
AWS, Alibaba Cloud and SeaweedFS."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpstream.services.coordinator.fleet.pools import FleetFile
from dpstream.shared.access import LISTENERS, PROBES, SETTLING, Role, kept_from
from dpstream.shared.bus.topology import DEAD, EVENTS, OFFERS, TASKS, TOPOLOGY, exchange_of

ADMIN = "admin"
"""The user that creates the bucket; no service uses it."""
CHANNELS = 20
"""Most channels of one user to the broker, for each of its connections."""
NOTHING = "^$"
"""RabbitMQ's pattern that matches no name."""


@dataclass(frozen=True)
class Deployment:
    """The broker and bucket that all users share, and the roles by user name."""

    bucket: str
    users: Mapping[str, Role]
    prefix: str = ""
    vhost: str = "dpstream"
    broker_prefix: str = ""


@dataclass(frozen=True)
class Secrets:
    """The credentials of one user for broker and store."""

    password: str = field(repr=False)
    access_key: str
    secret_key: str = field(repr=False)
    signing_key: str | None = field(default=None, repr=False)
    """Of users that create labels."""


# --------------------------------------------------------------------------------------- the broker


def definitions(place: Deployment, known: Mapping[str, Secrets]) -> dict[str, Any]:
    """Users, virtual host and permissions in RabbitMQ's import format."""
    return {
        "users": [
            {
                "name": user,
                "password_hash": hashed(known[user].password, secrets.token_bytes(4)),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
                "limits": {
                    "max-connections": role.connections,
                    "max-channels": CHANNELS * role.connections,
                },
            }
            for user, role in place.users.items()
        ],
        "vhosts": [{"name": place.vhost}],
        "permissions": [
            {"user": user, "vhost": place.vhost, **permission(role, place.broker_prefix)}
            for user, role in place.users.items()
        ],
        "topic_permissions": [
            {"user": user, "vhost": place.vhost, **each}
            for user, role in place.users.items()
            for each in topic_permissions(role, place.broker_prefix)
        ],
    }


def permission(role: Role, prefix: str = "") -> dict[str, str]:
    """Patterns of the queues and exchanges that a user may configure, write to and read from. A
    role that issues commands may declare everything, since binding a queue requires writing to
    it."""
    listeners = (LISTENERS,) if role.subscribes else ()
    if role.commands:
        every = (EVENTS, OFFERS, TASKS, DEAD, *(row.name for row in TOPOLOGY), *listeners, SETTLING)
        return dict.fromkeys(("configure", "write", "read"), _names(every, prefix))
    published = tuple(dict.fromkeys(map(exchange_of, role.publishes)))
    subscribed = (EVENTS,) if role.subscribes else ()
    return {
        "configure": _names(listeners, prefix),
        "write": _names((*published, *listeners), prefix),
        "read": _names((*role.consumes, *subscribed, *listeners), prefix),
    }


def topic_permissions(role: Role, prefix: str = "") -> Iterator[dict[str, str]]:
    """For each exchange, patterns of topics `<campaign>.<kind>` that a user may publish and
    subscribe to."""
    for exchange in (EVENTS, OFFERS):
        written = [kind for kind in role.publishes if exchange_of(kind) == exchange]
        read = _topics(role.subscribes)
        yield {"exchange": prefix + exchange, "write": _topics(written), "read": read}


def _names(patterns: Sequence[str], prefix: str) -> str:
    if not patterns:
        return NOTHING
    return f"^{re.escape(prefix)}({'|'.join(_regex(each, '.+') for each in patterns)})$"


def _topics(kinds: Sequence[str]) -> str:
    if not kinds:
        return NOTHING
    return rf"^[^.]+\.({'|'.join(_regex(each, '[^.]+') for each in kinds)})$"


def _regex(pattern: str, anything: str) -> str:
    return anything.join(re.escape(part) for part in pattern.split("*"))


def hashed(password: str, salt: bytes) -> str:
    """RabbitMQ's password hash: base64 of the 4-byte salt and the SHA-256 of salt and password."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


# ---------------------------------------------------------------------------------------- the store


@dataclass(frozen=True)
class Dialect:
    """The policy language of one provider. `listed`: operator and key of the condition on the
    prefix of a listing; `created`: the condition that a write replaces nothing; `secured`: the key
    of the condition on TLS."""

    version: str
    service: str
    list_action: str
    resource: str
    listed: tuple[str, str]
    created: Mapping[str, Any] = field(default_factory=dict)
    secured: str | None = None


DIALECTS = {
    "aws": Dialect(
        version="2012-10-17",
        service="s3",
        list_action="ListBucket",
        resource="arn:aws:s3:::",
        # Without the right to list, S3 answers 403 instead of 404 for a missing object. Such a
        # request has no prefix, hence IfExists.
        listed=("StringLikeIfExists", "s3:prefix"),
        created={"Null": {"s3:if-none-match": "false"}},
        secured="aws:SecureTransport",
    ),
    "alibaba": Dialect(
        version="1",
        service="oss",
        list_action="ListObjects",
        resource="acs:oss:*:*:",
        listed=("StringLike", "oss:Prefix"),
        secured="acs:SecureTransport",
    ),
    "seaweedfs": Dialect(
        version="2012-10-17",
        service="s3",
        list_action="ListBucket",
        resource="arn:aws:s3:::",
        listed=("StringLike", "s3:prefix"),
    ),
}


def policy(role: Role, place: Deployment, dialect: Dialect) -> dict[str, Any]:
    """The bucket policy of a role. Everything not allowed is refused; denials override any other
    policy that allows it."""
    statements = [*_allowed(role, place, dialect), *_denied(role, place, dialect)]
    return {"Version": dialect.version, "Statement": statements}


def fleet_policy(file: FleetFile) -> dict[str, Any] | None:
    """What the coordinator needs on AWS to run the pools of AWS Batch; None without such a pool.
    Batch has no rights by resource for lists and descriptions."""
    pools = [each.aws_batch for each in file.pools.values() if each.engine == "aws_batch"]
    if not pools:
        return None
    arn = "arn:aws:batch:*:*:"
    definitions = f"{arn}job-definition/dpstream-{file.deployment}-*"
    queues = sorted({f"{arn}job-queue/{pool.queue}" for pool in pools})
    roles = sorted(
        {role for pool in pools for role in (pool.job_role, pool.execution_role) if role}
    )
    ours = {"StringEquals": {"aws:ResourceTag/dpstream-deployment": file.deployment}}
    lists = ("ListJobs", "DescribeJobs", "DescribeJobDefinitions", "DescribeJobQueues")
    tasks = {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
    granted: list[tuple[list[str], list[str], Mapping[str, Any]]] = [
        ([f"batch:{each}" for each in lists], ["*"], {}),
        (["batch:SubmitJob"], [*queues, definitions, f"{arn}job/*"], {}),
        (["batch:RegisterJobDefinition"], [definitions], {}),
        (["batch:TagResource"], [definitions, f"{arn}job/*"], {}),
        (["batch:CancelJob", "batch:TerminateJob"], [f"{arn}job/*"], ours),
        (["iam:PassRole"], roles, tasks),
    ]
    statements = [_statement("Allow", *each) for each in granted if each[1]]
    return {"Version": DIALECTS["aws"].version, "Statement": statements}


def identities(place: Deployment, known: Mapping[str, Secrets]) -> dict[str, Any]:
    """Users with their keys and policies in SeaweedFS's configuration format."""
    users = place.users
    return {
        "identities": [
            {"name": ADMIN, "credentials": _credentials(known[ADMIN]), "actions": ["Admin"]},
            *(
                {"name": user, "credentials": _credentials(known[user]), "policyNames": [user]}
                for user in users
            ),
        ],
        "policies": [
            {"name": user, "content": json.dumps(policy(role, place, DIALECTS["seaweedfs"]))}
            for user, role in users.items()
        ],
    }


def _allowed(role: Role, place: Deployment, dialect: Dialect) -> Iterator[dict[str, Any]]:
    service = dialect.service
    granted: tuple[tuple[tuple[str, ...], Iterable[str], Mapping[str, Any]], ...] = (
        (("GetObject",), dict.fromkeys((*role.reads, *role.creates)), {}),
        (("PutObject",), role.creates, dialect.created),
        (("PutObject", "AbortMultipartUpload"), role.replaces, {}),
        (("DeleteObject",), role.deletes, {}),
    )
    for actions, patterns, condition in granted:
        keys = [_resource(place, dialect, pattern) for pattern in patterns]
        if keys:
            yield _statement("Allow", [f"{service}:{each}" for each in actions], keys, condition)
    yield _statement(
        "Allow",
        [f"{service}:{dialect.list_action}"],
        [dialect.resource + place.bucket],
        _listing(role, place, dialect),
    )


def _denied(role: Role, place: Deployment, dialect: Dialect) -> Iterator[dict[str, Any]]:
    service, bucket = dialect.service, dialect.resource + place.bucket
    kept = [_resource(place, dialect, pattern) for pattern in kept_from(role)]
    if kept:
        yield _statement("Deny", [f"{service}:PutObject", f"{service}:DeleteObject"], kept, {})
    if dialect.secured is not None:
        plain = {"Bool": {dialect.secured: "false"}}
        yield _statement("Deny", [f"{service}:*"], [bucket, f"{bucket}/*"], plain)


def _listing(role: Role, place: Deployment, dialect: Dialect) -> dict[str, Any]:
    """The condition on listings. A role that lists nothing may list the probes, because S3 reveals
    missing objects only to users who may list."""
    operator, key = dialect.listed
    starts = [f"{start}*" for start in role.lists] or [PROBES]
    return {operator: {key: [_below(place, start) for start in starts]}}


def _statement(
    effect: str, actions: list[str], resources: list[str], condition: Mapping[str, Any]
) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": effect, "Action": actions, "Resource": resources}
    return statement | ({"Condition": dict(condition)} if condition else {})


def _resource(place: Deployment, dialect: Dialect, pattern: str) -> str:
    return f"{dialect.resource}{place.bucket}/{_below(place, pattern)}"


def _below(place: Deployment, pattern: str) -> str:
    return f"{place.prefix}/{pattern}" if place.prefix else pattern


def _credentials(user: Secrets) -> list[dict[str, str]]:
    return [{"accessKey": user.access_key, "secretKey": user.secret_key}]
