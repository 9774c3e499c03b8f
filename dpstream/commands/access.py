"""`dpstream access`: credentials for the broker and the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpstream.deploy.access_files import parse_deployment, with_pools, write_access
from dpstream.services.coordinator.fleet.pools import read_fleet
from dpstream.shared.access import ROLES
from dpstream.terminal.console import console, print_line


def access(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", "--out", metavar="DIR", help="Folder to write to."),
    ],
    bucket: Annotated[str, typer.Option(metavar="NAME", help="Bucket of the store.")] = "dpstream",
    prefix: Annotated[
        str, typer.Option(metavar="PREFIX", help="Key prefix of dpstream's objects in the bucket.")
    ] = "",
    users: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Comma-separated users, each as ROLE, NAME=ROLE or NAME=ROLE+ROLE; roles: "
            f"{', '.join(ROLES)}.",
        ),
    ] = ",".join(ROLES),
    fleet: Annotated[
        Path | None,
        typer.Option(
            "--fleet", metavar="FILE", help="Fleet file: also a user for each of its pools."
        ),
    ] = None,
    vhost: Annotated[
        str, typer.Option(metavar="NAME", help="Virtual host of the broker.")
    ] = "dpstream",
    broker_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Prefix of every queue and exchange name.")
    ] = "",
) -> None:
    """Write least-privilege credentials for the broker and the store, one user per role by default.

    DIR/passwords.env (mode 0600) holds all secrets. Existing secrets are kept; delete a line to
    have that secret generated again.
    RabbitMQ imports DIR/rabbitmq/definitions.json. SeaweedFS reads DIR/seaweedfs/s3.json (mode
    0600). DIR/aws and DIR/alibaba hold one bucket policy per user. With pools of AWS Batch in the
    fleet file, DIR/aws/coordinator-fleet.json is the policy that the coordinator needs for them.
    """
    pools = read_fleet(fleet) if fleet else None
    everyone = with_pools(users, pools)
    place = parse_deployment(everyone, bucket, prefix, vhost, broker_prefix)
    for file in write_access(place, output, pools):
        print_line(console, f"wrote {file}")
