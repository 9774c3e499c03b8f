"""`dpstream access`: files that give every service its own broker user and bucket policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpstream.deploy.access_files import parse_deployment, write_access
from dpstream.shared.access import ROLES
from dpstream.terminal.console import console, say


def access(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")],
    bucket: Annotated[str, typer.Option(metavar="NAME", help="Bucket of the store.")] = "dpstream",
    prefix: Annotated[
        str, typer.Option(metavar="PREFIX", help="Where dpstream's objects begin in the bucket.")
    ] = "",
    users: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"Comma-separated users: a role ({', '.join(ROLES)}), or NAME=ROLE, or "
            "NAME=ROLE+ROLE.",
        ),
    ] = ",".join(ROLES),
    vhost: Annotated[
        str, typer.Option(metavar="NAME", help="Virtual host of the broker.")
    ] = "dpstream",
    broker_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="What goes before every queue and exchange name.")
    ] = "",
) -> None:
    """Write least-privilege users of broker and store, one for each service.

    DIR/passwords.env (mode 0600) keeps every secret; those that are in it already stay, a line that
    is deleted is made anew.
    DIR/rabbitmq/definitions.json is what RabbitMQ imports, DIR/seaweedfs/s3.json (mode 0600) what
    SeaweedFS reads, DIR/aws and DIR/alibaba hold a policy of the bucket for each user.
    """
    place = parse_deployment(users, bucket, prefix, vhost, broker_prefix)
    for file in write_access(place, out):
        say(console, f"wrote {file}")
