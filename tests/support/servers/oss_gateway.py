"""Alibaba OSS and its token service as their documentation describes them, in front of a real S3
server.

Processes reach it as their HTTPS proxy, by the clouds' own host names. OSS takes only addresses
with the bucket in the host name and keys that its token service has issued and that are valid; it
ignores `If-None-Match` and `If-Match`, and `x-oss-forbid-overwrite` does not exclude a simultaneous
creator. Signatures are not checked.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import secrets
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dpstream.deploy.devcluster.seaweed import SeaweedServer
from dpstream.shared.store import rrsa
from tests.support.servers.certificate_authority import Authority
from tests.support.servers.faulty_s3 import HOP_BY_HOP, Handler, serving

REGION = "cn-test"
TOKENS, OSS = f"sts.{REGION}.aliyuncs.com", f"oss-{REGION}.aliyuncs.com"
CONDITIONS = {"if-none-match", "if-match"}
SIGNED = {"authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "host"}


class OssGateway:
    """`latency`: seconds, at most, before each answer; `busy`: share of requests that meet 503
    SlowDown; `valid`: seconds for which keys are valid."""

    def __init__(
        self,
        server: SeaweedServer,
        folder: Path,
        latency: float = 0.02,
        busy: float = 0.05,
        valid: float = 5.0,
    ) -> None:
        self._server = urlsplit(server.endpoint).netloc
        self._auth = S3SigV4Auth(
            Credentials(server.access_key, server.secret_key), "s3", "us-east-1"
        )
        self._latency, self._busy, self._valid = latency, busy, timedelta(seconds=valid)
        self._authority = Authority(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*self._authority.issue("aliyun", (TOKENS, OSS, f"*.{OSS}")))
        self._random, self._lock = random.Random(7), threading.Lock()
        self._keys: dict[str, datetime] = {}
        self._tokens: list[str] = []
        self.token_file = folder / "token"
        self.answers: Counter[str] = Counter()
        """By error code, and of ignored conditions and issued keys."""
        self.replace_token()

    def replace_token(self) -> None:
        """As a cluster does: the token before is accepted for a while."""
        self._tokens = [*self._tokens[-1:], secrets.token_hex(8)]
        part = self.token_file.with_suffix(".part")
        part.write_text(self._tokens[-1])
        part.rename(self.token_file)

    @contextmanager
    def serving(self) -> Iterator[dict[str, str]]:
        """Environment of the processes that use the gateway. No key of the store is in it."""
        gateway = self

        class Oss(Handler):
            def do_CONNECT(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.connection = gateway._context.wrap_socket(self.connection, server_side=True)
                self.rfile = self.connection.makefile("rb")
                self.wfile = socketserver._SocketWriter(self.connection)  # type: ignore[attr-defined]
                self.close_connection = False

            def answer(self, body: bytes) -> None:
                gateway._answer(self, body)

        with serving(Oss) as url:
            yield {
                "HTTPS_PROXY": url,
                "SSL_CERT_FILE": str(self._authority.file),
                "DPSTREAM_STORE_CA_FILE": str(self._authority.file),
                "DPSTREAM_STORE_ENDPOINT": f"https://{OSS}",
                "DPSTREAM_STORE_ADDRESSING": "virtual",
                "DPSTREAM_STORE_REGION": f"oss-{REGION}",
                rrsa.REGION: REGION,
                rrsa.ROLE: "acs:ram::1:role/dpstream",
                rrsa.PROVIDER: "acs:ram::1:oidc-provider/ack",
                rrsa.TOKEN_FILE: str(self.token_file),
            }

    def _answer(self, request: Handler, body: bytes) -> None:
        host = request.headers["Host"].partition(":")[0]
        if host == TOKENS:
            return self._issue(request, body)
        time.sleep(self._drawn() * self._latency)
        refusal = self._refusal(request, host)
        if refusal:
            self.answers[refusal[1]] += 1
            return request.fail(*refusal)
        bucket = host.removesuffix(f".{OSS}")
        return self._pass_on(request, f"/{bucket}{request.path}", body)

    def _refusal(self, request: Handler, host: str) -> tuple[int, str] | None:
        if host == OSS:
            return 403, "SecondLevelDomainForbidden"
        found = re.search(r"Credential=([^/]+)/", request.headers.get("Authorization", ""))
        expiry = self._keys.get(found[1]) if found else None
        if expiry is None:
            return 403, "InvalidAccessKeyId"
        if expiry < datetime.now(timezone.utc):
            return 403, "SecurityTokenExpired"
        return (503, "SlowDown") if self._drawn() < self._busy else None

    def _drawn(self) -> float:
        with self._lock:
            return self._random.random()

    def _issue(self, request: Handler, body: bytes) -> None:
        fields = parse_qs(body.decode())
        if fields["OIDCToken"][0] not in self._tokens:
            self.answers["AuthenticationFail.OIDCToken.Invalid"] += 1
            return request.fail(400, "AuthenticationFail.OIDCToken.Invalid")
        key, expiry = f"STS.{secrets.token_hex(8)}", datetime.now(timezone.utc) + self._valid
        self._keys[key] = expiry
        self.answers["issued"] += 1
        issued = {
            "AccessKeyId": key,
            "AccessKeySecret": secrets.token_hex(16),
            "SecurityToken": secrets.token_hex(16),
            "Expiration": expiry.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return request.respond(200, json.dumps({"Credentials": issued}).encode())

    def _pass_on(self, request: Handler, path: str, body: bytes) -> None:
        given = {name.lower(): value for name, value in request.headers.items()}
        for name in CONDITIONS & set(given):
            self.answers[name] += 1
        if given.pop("x-oss-forbid-overwrite", None) == "true":
            if self._forward("HEAD", path, {}, b"")[0] == 200:
                self.answers["FileAlreadyExists"] += 1
                return request.fail(409, "FileAlreadyExists")
            time.sleep(self._drawn() * self._latency)
        kept = {n: v for n, v in given.items() if n not in HOP_BY_HOP | CONDITIONS | SIGNED}
        return request.respond(*self._forward(request.command, path, kept, body))

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        wanted = AWSRequest(method, f"http://{self._server}{path}", headers, body)
        self._auth.add_auth(wanted)
        connection = http.client.HTTPConnection(self._server, timeout=30)
        try:
            connection.request(method, path, body, dict(wanted.headers.items()))
            answer = connection.getresponse()
            kept = {n: v for n, v in answer.getheaders() if n.lower() not in HOP_BY_HOP}
            return answer.status, answer.read(), kept
        finally:
            connection.close()
