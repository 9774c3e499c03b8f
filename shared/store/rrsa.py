"""Credentials of an Alibaba Cloud service account (RRSA) for the S3 interface of OSS.

In an ACK cluster a pod gets a token of its service account. The token service of Alibaba Cloud
(STS) exchanges it for short-lived keys of a RAM role. The AWS credential chain does not know this
service. The variables are those that ACK sets and Alibaba Cloud's own libraries read.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

ROLE, PROVIDER, TOKEN_FILE = (
    "ALIBABA_CLOUD_ROLE_ARN",
    "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
    "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
)
"""Set by the cluster."""
REGION, INSIDE_VPC = "ALIBABA_CLOUD_STS_REGION", "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED"
SECONDS = 10.0
"""Time limit of a request."""


def available() -> bool:
    """Whether the cluster has given this process a role."""
    return all(os.environ.get(name) for name in (ROLE, PROVIDER, TOKEN_FILE))


def endpoint() -> str:
    """The URL of the token service: of the region, if one is named."""
    region = os.environ.get(REGION)
    if not region:
        return "https://sts.aliyuncs.com"
    inside = os.environ.get(INSIDE_VPC, "").lower() == "true"
    return f"https://sts{'-vpc' if inside else ''}.{region}.aliyuncs.com"


def credentials(url: str) -> Mapping[str, str]:
    """New keys from the token service at `url`, with the names that botocore uses. Raises OSError,
    ValueError or KeyError if there are none."""
    query = {
        "Action": "AssumeRoleWithOIDC",
        "Version": "2015-04-01",
        "Format": "JSON",
        "Timestamp": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "SignatureNonce": str(uuid.uuid4()),
        "RoleArn": os.environ[ROLE],
        "OIDCProviderArn": os.environ[PROVIDER],
        "OIDCToken": Path(os.environ[TOKEN_FILE]).read_text().strip(),
        "RoleSessionName": "dpstream",
    }
    with urlopen(url, urlencode(query).encode(), timeout=SECONDS) as reply:
        found = json.load(reply)["Credentials"]
    return {
        "access_key": found["AccessKeyId"],
        "secret_key": found["AccessKeySecret"],
        "token": found["SecurityToken"],
        "expiry_time": found["Expiration"],
    }
