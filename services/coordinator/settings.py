"""Settings of the coordinator, read from environment variables."""

from __future__ import annotations

import ipaddress

from pydantic import Field, FilePath, SecretStr, model_validator

from dpstream.shared.settings import PREFIX, Settings


class CoordinatorSettings(Settings):
    http_port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        description="port of the API and the dashboard; 0 disables both",
    )
    api_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="bearer token of the API; required to serve other machines",
    )
    lease_seconds: float = Field(
        default=900.0,
        ge=1.0,
        description="seconds without a heartbeat after which a task counts as lost",
    )
    reissue_after: float = Field(
        default=600.0,
        ge=1.0,
        description="seconds until an unclaimed task that the broker lost is published again",
    )
    patience: float = Field(
        default=600.0,
        ge=0.0,
        description="seconds after which a campaign pauses whose tasks all workers decline",
    )

    fleet: FilePath | None = Field(
        default=None,
        description="fleet file with the pools of workers to start on demand; see docs/fleet.md",
    )

    @model_validator(mode="after")
    def _guarded(self) -> CoordinatorSettings:
        if self.http_port and self.api_token is None and not is_loopback(self.http_host):
            raise ValueError(
                f"{PREFIX}HTTP_HOST: {self.http_host!r}: serving other machines requires "
                f"{PREFIX}API_TOKEN with at least 16 characters"
            )
        return self


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
