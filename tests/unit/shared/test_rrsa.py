"""Keys of a service account of Alibaba Cloud, from a stand-in for its token service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from dpstream.shared.errors import NotFound, StoreError
from dpstream.shared.store import rrsa
from dpstream.shared.store.s3 import S3Settings, S3Store


@dataclass
class Cloud:
    """Token service (POST) and an empty bucket (GET) on one port."""

    url: str = ""
    expiration: str = "2099-01-01T00:00:00Z"
    refuses: bool = False
    requests: list[dict[str, str]] = field(default_factory=list)
    """Parameters of the requests for keys."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Headers of the requests for objects."""


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    found = Cloud()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            found.requests.append({key: values[0] for key, values in parse_qs(body).items()})
            number = len(found.requests)
            keys = {
                "AccessKeyId": f"STS.{number}",
                "AccessKeySecret": "secret",
                "SecurityToken": f"token-{number}",
                "Expiration": found.expiration,
            }
            self._answer(403 if found.refuses else 200, json.dumps({"Credentials": keys}))

        def do_GET(self) -> None:
            found.headers.append(dict(self.headers))
            self._answer(404, "<Error><Code>NoSuchKey</Code></Error>")

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "token").write_text("a.b.c\n")
    monkeypatch.setenv(rrsa.ROLE, "acs:ram::1:role/labeler")
    monkeypatch.setenv(rrsa.PROVIDER, "acs:ram::1:oidc-provider/ack")
    monkeypatch.setenv(rrsa.TOKEN_FILE, str(tmp_path / "token"))
    monkeypatch.setattr(rrsa, "endpoint", lambda: found.url)
    yield found
    server.shutdown()
    server.server_close()


def read(cloud: Cloud, times: int = 1) -> None:
    store = S3Store(
        S3Settings(
            bucket="dpstream", endpoint=cloud.url, region="cn-x", addressing="path", attempts=1
        )
    )
    for _ in range(times):
        with pytest.raises(NotFound):
            store.get("absent")


@pytest.mark.slow
def test_requests_are_signed_with_the_keys_of_the_role(cloud: Cloud) -> None:
    read(cloud, times=2)
    (request,) = cloud.requests
    assert request["Action"] == "AssumeRoleWithOIDC"
    assert request["RoleArn"] == "acs:ram::1:role/labeler"
    assert request["OIDCProviderArn"] == "acs:ram::1:oidc-provider/ack"
    assert request["OIDCToken"] == "a.b.c"
    for headers in cloud.headers:
        assert "Credential=STS.1/" in headers["Authorization"]
        assert headers["X-Amz-Security-Token"] == "token-1"


@pytest.mark.slow
def test_keys_are_renewed_before_they_expire(cloud: Cloud) -> None:
    soon = datetime.now(timezone.utc) + timedelta(minutes=5)
    cloud.expiration = soon.strftime("%Y-%m-%dT%H:%M:%SZ")
    read(cloud, times=2)
    tokens = [headers["X-Amz-Security-Token"] for headers in cloud.headers]
    assert len(set(tokens)) == 2
    assert tokens[-1] == f"token-{len(cloud.requests)}"


@pytest.mark.slow
def test_a_refusal_is_an_error_of_the_store(cloud: Cloud) -> None:
    cloud.refuses = True
    with pytest.raises(StoreError, match="rrsa"):
        read(cloud)


@pytest.mark.slow
def test_without_a_role_the_aws_chain_is_used(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(rrsa.ROLE)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    read(cloud)
    assert cloud.requests == []
    assert "Credential=AKIA/" in cloud.headers[0]["Authorization"]


@pytest.mark.parametrize(
    ("region", "inside", "expected"),
    [
        ("", "", "https://sts.aliyuncs.com"),
        ("cn-hangzhou", "", "https://sts.cn-hangzhou.aliyuncs.com"),
        ("cn-hangzhou", "true", "https://sts-vpc.cn-hangzhou.aliyuncs.com"),
    ],
)
def test_the_token_service_is_that_of_the_region(
    region: str, inside: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rrsa.REGION, region)
    monkeypatch.setenv(rrsa.INSIDE_VPC, inside)
    assert rrsa.endpoint() == expected
