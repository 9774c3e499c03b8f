"""What a process is told by its environment: `DPSTREAM_*`, read once, in `__main__`.

A field `store_region` is the variable `DPSTREAM_STORE_REGION`. An empty variable counts as unset.
Secrets are `SecretStr`: neither a repr nor an error shows them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from dpstream.shared.errors import SpecError
from dpstream.shared.logs import redacted
from dpstream.shared.spec.errors import did_you_mean, shown
from dpstream.shared.values import is_key

PREFIX = "DPSTREAM_"
LONGEST_PREFIX = 400
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

S = TypeVar("S", bound=BaseSettings)


def comma_separated(value: Any) -> Any:
    """`a,b` as `("a", "b")`, for fields of words."""
    return (
        tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value
    )


Separated = BeforeValidator(comma_separated)
"""Annotates a tuple that is written with commas."""


def _broker_url(url: SecretStr) -> SecretStr:
    """The reason never quotes the URL: a password is in it."""
    try:
        parts = urlsplit(url.get_secret_value())
        _ = parts.port  # parsed when asked for
        good = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and not parts.query
    except ValueError:
        good = False
    if not good:
        raise ValueError(
            "should be amqp(s)://user:password@host:port/vhost, with special characters of user "
            "and password percent-encoded"
        )
    return url


def bucket_and_prefix(url: str) -> tuple[str, str] | None:
    """The parts of `s3://bucket/prefix`, the prefix without slashes at its ends; None for a
    folder. ValueError for anything else."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return None
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    good = scheme == "s3" and BUCKET.fullmatch(bucket) and len(prefix) <= LONGEST_PREFIX
    if not good or (prefix and not is_key(prefix)):
        raise ValueError("should be s3://bucket/prefix or the path of a folder")
    return bucket, prefix


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    _ = parts.port  # ValueError for what is none
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in url:
        raise ValueError("should be http(s)://host:port")
    return url


def _store_url(url: str) -> str:
    bucket_and_prefix(url)
    return url


class StoreSettings(BaseSettings):
    """Where objects are kept."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        enable_decoding=False,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    store: Annotated[str, AfterValidator(_store_url)] = Field(
        description="object store: s3://bucket/prefix, or a folder"
    )
    store_endpoint: Annotated[str, AfterValidator(_endpoint)] | None = Field(
        default=None, description="S3 endpoint URL; default: AWS"
    )
    store_region: str | None = Field(default=None, description="S3 region")
    store_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="how a bucket is addressed; Alibaba OSS wants virtual"
    )
    store_encryption: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9:-]+$",
        description="server-side encryption header, e.g. AES256 or aws:kms",
    )
    store_ca_file: FilePath | None = Field(
        default=None, description="certificates of a private authority, PEM"
    )
    store_access_key: SecretStr | None = Field(
        default=None, description="default: the standard credential chain"
    )
    store_secret_key: SecretStr | None = Field(default=None, description="goes with the access key")

    @model_validator(mode="after")
    def _whole_key(self) -> StoreSettings:
        if (self.store_access_key is None) != (self.store_secret_key is None):
            raise ValueError(f"{PREFIX}STORE_ACCESS_KEY and {PREFIX}STORE_SECRET_KEY go together")
        return self


class BrokerSettings(BaseSettings):
    """Where messages cross."""

    model_config = StoreSettings.model_config

    broker: Annotated[SecretStr, AfterValidator(_broker_url)] = Field(
        description="message broker: amqp(s)://user:password@host:port/vhost"
    )
    broker_queue_type: Literal["quorum", "classic"] = Field(
        default="quorum", description="classic where the broker has no quorum queues"
    )
    broker_ca_file: FilePath | None = Field(
        default=None, description="certificates of a private authority, PEM"
    )
    broker_cert_file: FilePath | None = Field(default=None, description="client certificate, PEM")
    broker_key_file: FilePath | None = Field(default=None, description="its private key, PEM")
    broker_heartbeat: int = Field(
        default=60, ge=1, le=3600, description="seconds between heartbeats of the connection"
    )
    broker_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,60}$",
        description="put before every queue and exchange name",
    )

    @model_validator(mode="after")
    def _tls(self) -> BrokerSettings:
        if (self.broker_cert_file is None) != (self.broker_key_file is None):
            raise ValueError(f"{PREFIX}BROKER_CERT_FILE and {PREFIX}BROKER_KEY_FILE go together")
        secured = self.broker.get_secret_value().startswith("amqps:")
        if not secured and (self.broker_ca_file or self.broker_cert_file):
            raise ValueError(f"{PREFIX}BROKER: certificates are given, so it should be amqps://…")
        return self


class Settings(StoreSettings, BrokerSettings):
    """What every service is told."""

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="of this process, in claims and logs; default: service, host and process id",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else JSON lines"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least that is logged, on standard error"
    )
    http_host: str = Field(default="127.0.0.1", description="where HTTP is served")
    http_port: int = Field(
        default=0, ge=0, le=65535, description="for /healthz, /readyz and /metrics; 0: not served"
    )


class WorkerSettings(Settings):
    """What every worker service is told."""

    scratch: Path | None = Field(
        default=None, description="folder for private files of tasks; default: a temporary one"
    )
    threads: int = Field(default=1, ge=1, le=1024, description="threads of one engine")
    task_heartbeat: float = Field(
        default=60.0, gt=0, le=600, description="seconds between heartbeats of a running task"
    )
    max_tasks: int | None = Field(default=None, ge=1, description="exit 0 after so many tasks")
    idle_exit: float | None = Field(
        default=None, gt=0, description="exit 0 after so many seconds without a task"
    )


def read_settings(kind: type[S], **given: Any) -> S:
    """The settings in the environment; `given` (of the command line) go before them. Raises
    `SpecError`, in one line that names the variable, its value and what is allowed."""
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SpecError(_explained(error, kind)) from None  # its context would show the input


def _explained(error: ValidationError, kind: type[BaseSettings]) -> str:
    """The first problem in one line; a missing variable may be a misspelt one."""
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        return _message(problem)
    name = str(problem["loc"][0])
    field, variable = kind.model_fields[name], variable_of(name)
    if problem["type"] == "missing":
        misspelt = did_you_mean(variable, unknown_variables(kind)).replace("did you mean", "not")
        return f"{variable}: missing ({field.description}){misspelt}"
    value = problem["input"]
    if is_secret(field) or not isinstance(value, (str, int, float)):
        return f"{variable}: {_message(problem)}"
    return f"{variable}: {shown(redacted(str(value)))}: {_message(problem)}"


def _message(problem: ErrorDetails) -> str:
    return problem["msg"].removeprefix("Value error, ").removeprefix("Input ")


def variable_of(name: str) -> str:
    return PREFIX + name.upper()


def is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def unknown_variables(kind: type[BaseSettings]) -> list[str]:
    """`DPSTREAM_*` variables that are set and that `kind` does not read."""
    known = {variable_of(name) for name in kind.model_fields}
    return sorted(v for v in os.environ if v.upper().startswith(PREFIX) and v.upper() not in known)


def misspelt_variables(kind: type[BaseSettings]) -> Iterator[tuple[str, str]]:
    """Variables that are set, that nobody reads, and those probably meant. Others may be another
    service's."""
    known = [name.upper() for name in kind.model_fields]
    for variable in unknown_variables(kind):
        close = difflib.get_close_matches(variable.upper().removeprefix(PREFIX), known, 1, 0.8)
        if close:
            yield variable, PREFIX + close[0]


def variables(kind: type[BaseSettings]) -> Iterator[tuple[str, str]]:
    """Every variable and what it means, allowed values and default included, for `--help`."""
    for name, field in kind.model_fields.items():
        yield variable_of(name), f"{field.description or ''}{_choices(field)}{_default(field)}"


def _choices(field: FieldInfo) -> str:
    if get_origin(field.annotation) is not Literal:
        return ""
    return f" ({' | '.join(map(str, get_args(field.annotation)))})"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " [required]"
    if field.default in (None, "") or field.default_factory is not None:
        return ""
    return f" [{','.join(field.default) if isinstance(field.default, tuple) else field.default}]"


def secrets_in(settings: BaseSettings) -> tuple[str, ...]:
    """Every secret text, for the logs to leave out: of a URL its password, as written and as
    meant."""
    found: list[str] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            found += _parts_of_secret(value.get_secret_value())
    return tuple(sorted(set(found), key=len, reverse=True))


def _parts_of_secret(text: str) -> list[str]:
    if "://" not in text:
        return [text]
    password = urlsplit(text).password
    return [text, *((password, unquote(password)) if password else ())]
