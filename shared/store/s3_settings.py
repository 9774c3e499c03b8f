"""Settings of the S3 store."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from dpstream.shared.values import is_key


class S3Settings(BaseModel):
    """Bucket, endpoint and credentials of an S3 store."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    bucket: str
    prefix: str = Field(
        default="", max_length=400, description="prefix of all keys; nothing outside it is accessed"
    )
    endpoint: str | None = Field(
        default=None, pattern=r"^https?://[^@\s]+$", description="endpoint URL; default: AWS"
    )
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    encryption: str | None = Field(default=None, description="x-amz-server-side-encryption")
    ca_file: Path | None = Field(
        default=None, description="CA certificates, PEM file; default: public authorities"
    )
    access_key: SecretStr | None = Field(
        default=None, description="default: the standard AWS credential chain"
    )
    secret_key: SecretStr | None = None
    create_by: Literal["If-None-Match", "x-oss-forbid-overwrite"] | None = Field(
        default=None, description="header that requests create-if-absent; default: probed"
    )
    attempts: int = Field(
        default=8, ge=1, description="maximum attempts of one request, at growing intervals"
    )
    silence: float = Field(
        default=60.0, gt=0, description="seconds without data after which an attempt ends"
    )

    @field_validator("prefix")
    @classmethod
    def _is_key(cls, prefix: str) -> str:
        prefix = prefix.strip("/")
        if prefix and not is_key(prefix):
            raise ValueError(
                "is not a valid prefix: printable words separated by slashes, no leading dots"
            )
        return prefix
