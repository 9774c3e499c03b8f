"""Which bucket to use, where it is, and as whom."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from dpstream.shared.values import is_key


class S3Settings(BaseModel):
    """Which bucket, where, and as whom."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    bucket: str
    prefix: str = Field(default="", max_length=400, description="nothing else is ever touched")
    endpoint: str | None = Field(
        default=None, pattern=r"^https?://[^@\s]+$", description="default: that of AWS"
    )
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    encryption: str | None = Field(default=None, description="x-amz-server-side-encryption")
    ca_file: Path | None = Field(default=None, description="PEM; default: public authorities")
    access_key: SecretStr | None = Field(default=None, description="default: standard chain")
    secret_key: SecretStr | None = None
    create_by: Literal["If-None-Match", "x-oss-forbid-overwrite"] | None = Field(
        default=None, description="header of create-if-absent; default: what the probe finds"
    )
    attempts: int = Field(default=8, ge=1, description="of one request, at growing intervals")
    silence: float = Field(default=60.0, gt=0, description="s without a byte that end an attempt")

    @field_validator("prefix")
    @classmethod
    def _is_key(cls, prefix: str) -> str:
        prefix = prefix.strip("/")
        if prefix and not is_key(prefix):
            raise ValueError("is no prefix: printable words between slashes, no dot first")
        return prefix
