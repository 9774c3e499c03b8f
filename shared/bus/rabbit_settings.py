"""Settings of the connection to a RabbitMQ broker."""

from __future__ import annotations

import ssl
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, model_validator


class RabbitSettings(BaseModel):
    """`url`: amqp://user:password@host:port/vhost, or amqps://… with TLS. `queue_type`: quorum, or
    classic for brokers without quorum queues. `ca_file`: a private authority; `cert_file`,
    `key_file`: this client's certificate (all PEM). `heartbeat` in seconds. `prefix` precedes every
    queue and exchange name, so that deployments can share a virtual host. `users`: whether the
    broker checks the `user_id` of messages, as RabbitMQ does; if not, messages have no user."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: SecretStr
    queue_type: Literal["quorum", "classic"] = "quorum"
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    heartbeat: int = Field(default=60, ge=1, le=3600)
    prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,60}$")
    users: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> RabbitSettings:
        parts = self.parts
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname or parts.query:
            raise ValueError("url: must be amqp://user:password@host:port/vhost or amqps://…")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("set both cert_file and key_file, or neither")
        if parts.scheme == "amqp" and (self.ca_file or self.cert_file):
            raise ValueError("url: certificates are given, so it must be amqps://…")
        return self

    @property
    def parts(self) -> SplitResult:
        """The URL's parts. Raises ValueError, without quoting the URL, if it is invalid."""
        try:
            parts = urlsplit(self.url.get_secret_value())
            _ = parts.port  # parsed when asked for
        except ValueError:
            raise ValueError(
                "url: special characters of user and password must be percent-encoded"
            ) from None
        return parts

    @property
    def port(self) -> int:
        return self.parts.port or (5671 if self.parts.scheme == "amqps" else 5672)

    @property
    def virtual_host(self) -> str:
        return unquote(self.parts.path.removeprefix("/")) or "/"

    @property
    def user(self) -> str | None:
        """The user of the connection; None without `users`. A URL without one means `guest`."""
        return unquote(self.parts.username or "guest") if self.users else None

    @property
    def address(self) -> str:
        """The broker's address for logs and errors, without user and password."""
        return f"{self.parts.scheme}://{self.parts.hostname}:{self.port}"

    def tls(self) -> ssl.SSLContext | None:
        """TLS context of an amqps URL. Raises OSError (including ssl.SSLError) for unusable
        files."""
        if self.parts.scheme == "amqp":
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def name(self, plain: str) -> str:
        """The full name of a queue or exchange at the broker."""
        return self.prefix + plain
