"""Settings of a process from environment variables `DPSTREAM_*`, read once in `__main__`.

A field `store_region` is the variable `DPSTREAM_STORE_REGION`. An empty variable counts as unset.
Secrets are `SecretStr`: neither a repr nor an error shows them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
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
from pydantic_settings import BaseSettings, SettingsConfigDict

from dpstream.shared.codec import kind_of
from dpstream.shared.environment import PASS, checked
from dpstream.shared.errors import SpecError
from dpstream.shared.logs import redacted
from dpstream.shared.messages import COMMANDS
from dpstream.shared.spec.errors import did_you_mean, message_of, shown
from dpstream.shared.values import is_key

PREFIX = "DPSTREAM_"
LONGEST_PREFIX = 400
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

S = TypeVar("S", bound=BaseSettings)


def comma_separated(value: Any) -> Any:
    """Splits `a,b` into `("a", "b")`."""
    return (
        tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value
    )


Separated = BeforeValidator(comma_separated)
"""Annotates a tuple whose variable is a comma-separated list."""


def _slots(value: Any) -> Any:
    """A number of slots, or `auto`."""
    if value == "auto":
        return value
    with suppress(TypeError, ValueError):
        if int(value) >= 1:
            return int(value)
    raise ValueError("must be a number from 1, or auto")


def _job_of_aws_batch() -> str | None:
    """The name that only the worker itself sees there; children of arrays are `ARRAY:3`. Another
    attempt of the job is another process."""
    job, attempt = (os.environ.get(f"AWS_BATCH_JOB_{each}", "") for each in ("ID", "ATTEMPT"))
    return f"{job.replace(':', '.')}-{attempt}" if job else None


Slots = Annotated[int | Literal["auto"], BeforeValidator(_slots)]
"""Tasks that a process has in hand at once; auto: as many as the machine can run."""


def _pauses(value: Any) -> Any:
    """Splits `label=7200,train=1800` into a mapping of known kinds of commands."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=")[::2] for pair in comma_separated(value)]
    known = {kind_of(kind) for kind in COMMANDS}
    try:
        limits = {kind.strip(): float(seconds) for kind, seconds in pairs}
    except ValueError:
        limits = {}
    if (
        len(limits) < len(pairs)
        or not limits.keys() <= known
        or not all(seconds > 0 for seconds in limits.values())
    ):
        raise ValueError(f"must be KIND=SECONDS,…; kinds: {', '.join(sorted(known))}")
    return limits


def _broker_url(url: SecretStr) -> SecretStr:
    """Validates the URL without quoting it in the error: it contains a password."""
    try:
        parts = urlsplit(url.get_secret_value())
        _ = parts.port  # parsed when asked for
        good = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and not parts.query
    except ValueError:
        good = False
    if not good:
        raise ValueError(
            "must be amqp(s)://user:password@host:port/vhost, with special characters of user "
            "and password percent-encoded"
        )
    return url


def bucket_and_prefix(url: str) -> tuple[str, str] | None:
    """Bucket and prefix of `s3://bucket/prefix`, the prefix without outer slashes; None for a
    folder. Raises ValueError for any other URL."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return None
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if scheme == "s3" and not BUCKET.fullmatch(bucket):
        raise ValueError(
            f"bucket {bucket!r}: must be 3 to 63 of a-z, 0-9, '.' and '-', starting and ending "
            "with a letter or digit"
        )
    good = scheme == "s3" and len(prefix) <= LONGEST_PREFIX
    if not good or (prefix and not is_key(prefix)):
        raise ValueError("must be s3://bucket/prefix or the path of a folder")
    return bucket, prefix


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError if invalid
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in url:
        raise ValueError("must be http(s)://host:port")
    return url


def _store_url(url: str) -> str:
    bucket_and_prefix(url)
    return url


class StoreSettings(BaseSettings):
    """Connection to the object store."""

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
        default="auto", description="bucket addressing style; Alibaba OSS requires virtual"
    )
    store_encryption: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9:-]+$",
        description="server-side encryption header, e.g. AES256 or aws:kms",
    )
    store_ca_file: FilePath | None = Field(
        default=None, description="CA certificates of a private authority, PEM file"
    )
    store_access_key: SecretStr | None = Field(
        default=None, description="S3 access key; default: the standard AWS credential chain"
    )
    store_secret_key: SecretStr | None = Field(default=None, description="S3 secret key")

    @model_validator(mode="after")
    def _whole_key(self) -> StoreSettings:
        if (self.store_access_key is None) != (self.store_secret_key is None):
            raise ValueError(
                f"set both {PREFIX}STORE_ACCESS_KEY and {PREFIX}STORE_SECRET_KEY, or neither"
            )
        return self


class BrokerSettings(BaseSettings):
    """Connection to the message broker."""

    model_config = StoreSettings.model_config

    broker: Annotated[SecretStr, AfterValidator(_broker_url)] = Field(
        description="message broker: amqp(s)://user:password@host:port/vhost"
    )
    broker_queue_type: Literal["quorum", "classic"] = Field(
        default="quorum",
        description="type of the queues; classic for brokers without quorum queues",
    )
    broker_ca_file: FilePath | None = Field(
        default=None, description="CA certificates of a private authority, PEM file"
    )
    broker_cert_file: FilePath | None = Field(
        default=None, description="client certificate, PEM file"
    )
    broker_key_file: FilePath | None = Field(
        default=None, description="private key of the client certificate, PEM file"
    )
    broker_heartbeat: int = Field(
        default=60, ge=1, le=3600, description="seconds between heartbeats of the broker connection"
    )
    broker_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,60}$",
        description="prefix of every queue and exchange name",
    )
    broker_users: bool = Field(
        default=True,
        description="false for a broker that does not check the user_id of messages, as RabbitMQ "
        "does; the same for all processes of a deployment",
    )

    @model_validator(mode="after")
    def _tls(self) -> BrokerSettings:
        if (self.broker_cert_file is None) != (self.broker_key_file is None):
            raise ValueError(
                f"set both {PREFIX}BROKER_CERT_FILE and {PREFIX}BROKER_KEY_FILE, or neither"
            )
        secured = self.broker.get_secret_value().startswith("amqps:")
        if not secured and (self.broker_ca_file or self.broker_cert_file):
            raise ValueError(f"{PREFIX}BROKER: certificates are given, so it must be amqps://…")
        return self


class Settings(StoreSettings, BrokerSettings):
    """Settings of every service."""

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name of this process, shown in status and logs; default: service-host-pid",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="format of log lines; auto: console on a terminal, else JSON"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged"
    )
    http_host: str = Field(default="127.0.0.1", description="address of the HTTP server")
    http_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="port of the HTTP server for /healthz, /readyz and /metrics; 0: none",
    )


class WorkerSettings(Settings):
    """Settings of every worker service."""

    scratch: Path | None = Field(
        default=None,
        description="folder for the private files of tasks; default: a temporary folder",
    )
    threads: int = Field(
        default=1, ge=1, le=1024, description="threads per engine (for labeling programs: cores)"
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
        description="device of the engines: cpu, cuda, or cuda:N for GPU N of the visible ones; "
        "auto: the first visible GPU, else cpu (a labeler's programs: all visible GPUs)",
    )
    task_heartbeat: float = Field(
        default=60.0, gt=0, le=600, description="seconds between heartbeats of a running task"
    )
    lease_seconds: float = Field(
        default=900.0,
        ge=1.0,
        description="the coordinator's setting: a task without progress for "
        "less than a lease is not stuck",
    )
    stuck_after: Annotated[Mapping[str, float], BeforeValidator(_pauses)] = Field(
        default={},
        description="seconds without progress after which a task counts as stuck, by kind: "
        "label=7200,train=1800; default: 3600; judge, screen and select: 1800",
    )
    pass_: Annotated[tuple[str, ...], Separated, AfterValidator(checked)] = Field(
        default=(),
        validation_alias=PASS,
        description="comma-separated patterns of variables that engines and labeling programs may "
        "see, besides PATH and the like: SLURM_*,PMI*,I_MPI_*,UCX_*",
    )
    confine: Literal["strict", "site", "off"] = Field(
        default="site",
        description="what the kernel refuses to engines and labeling programs; site: homes, other "
        "workers' folders, secrets, broker and store; strict: also MPI, fabrics and all but the "
        "operating system's folders; off: nothing",
    )
    confine_read: Annotated[tuple[Path, ...], Separated] = Field(
        default=(),
        description="comma-separated further folders that engines and labeling programs may read, "
        "e.g. software in a home folder",
    )
    confine_write: Annotated[tuple[Path, ...], Separated] = Field(
        default=(),
        description="comma-separated further folders that they may write, e.g. a local disk",
    )
    pool: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name of the pool of workers that this process belongs to, for messages",
    )
    process: str | None = Field(
        default_factory=_job_of_aws_batch,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$",
        description="name of this process in the fleet engine, by which the coordinator learns "
        "that the process has ended; default: the job of AWS Batch",
    )
    grace: float = Field(
        default=25.0,
        ge=1,
        description="seconds that a worker has after SIGTERM to release its tasks; less than what "
        "its batch system or container runtime allows",
    )
    lifetime: float | None = Field(
        default=None,
        gt=0,
        description="seconds after which the process exits; a task begins only if it usually takes "
        "less than what is left; reduced at random by up to 10 %",
    )
    max_tasks: int | None = Field(
        default=None, ge=1, description="exit with status 0 after this many tasks"
    )
    idle_exit: float | None = Field(
        default=None, gt=0, description="exit with status 0 after this many seconds without a task"
    )

    @property
    def longest_pauses(self) -> Mapping[str, float]:
        """Seconds without progress after which a task counts as stuck, by kind."""
        stated = {kind_of(kind): kind.STUCK_AFTER for kind in COMMANDS} | dict(self.stuck_after)
        return {kind: max(seconds, self.lease_seconds) for kind, seconds in stated.items()}


def read_settings(kind: type[S], **given: Any) -> S:
    """The settings of the environment; `given` (from the command line) take precedence. Raises
    `SpecError` with one line that names the variable, its value and the allowed values."""
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SpecError(_explained(error, kind)) from None  # its context would show the input


def _explained(error: ValidationError, kind: type[BaseSettings]) -> str:
    """The first problem in one line, with a hint if a missing variable may be misspelt."""
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        return message_of(problem)
    place = str(problem["loc"][0])
    name = next(n for n in kind.model_fields if place in (n, variable_of(n)))
    field, variable = kind.model_fields[name], variable_of(name)
    if problem["type"] == "missing":
        misspelt = did_you_mean(variable, unknown_variables(kind)).replace(
            "did you mean", "misspelt as"
        )
        return f"{variable}: missing ({field.description}){misspelt}"
    value = problem["input"]
    if is_secret(field) or not isinstance(value, (str, int, float)):
        return f"{variable}: {message_of(problem)}"
    return f"{variable}: {shown(redacted(str(value)))}: {message_of(problem)}"


def variable_of(name: str) -> str:
    return PREFIX + name.upper().rstrip("_")


def is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def unknown_variables(kind: type[BaseSettings]) -> list[str]:
    """Names of set `DPSTREAM_*` variables that `kind` does not read."""
    known = {variable_of(name) for name in kind.model_fields}
    return sorted(v for v in os.environ if v.upper().startswith(PREFIX) and v.upper() not in known)


def misspelt_variables(kind: type[BaseSettings]) -> Iterator[tuple[str, str]]:
    """Set variables that are probably misspelt, each with the one probably meant. Other unknown
    variables may belong to another service."""
    known = [variable_of(name).removeprefix(PREFIX) for name in kind.model_fields]
    for variable in unknown_variables(kind):
        close = difflib.get_close_matches(variable.upper().removeprefix(PREFIX), known, 1, 0.8)
        if close:
            yield variable, PREFIX + close[0]


def variables(kind: type[BaseSettings]) -> Iterator[tuple[str, str]]:
    """Every variable with its description, allowed values and default, for `--help`."""
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
    """Every secret value, for the logs to mask; of a URL its password, as written and decoded."""
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
