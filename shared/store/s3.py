"""The S3 store: objects in a bucket of Amazon S3, a compatible server or Alibaba OSS.

The only module that uses S3 through boto3. A store is thread-safe: one client, one connection pool.
The constructor sends no request; `probe` sends the first.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import boto3.session
import botocore.credentials
import botocore.loaders
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    SSLError,
)
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from urllib3.exceptions import HTTPError

from dpstream.shared.errors import DigestMismatch, NotFound, Refused, StoreError
from dpstream.shared.files import arriving
from dpstream.shared.store import rrsa
from dpstream.shared.store.keys import bounded, checked, checked_prefix, digested, file_errors
from dpstream.shared.store.s3_settings import S3Settings
from dpstream.shared.values import is_key

__all__ = ["S3Settings", "S3Store"]

P = ParamSpec("P")
T = TypeVar("T")

PROBES = ".probe/"
"""Folder of the probe's objects, below the prefix; no key begins with a dot."""

IF_NONE_MATCH, FORBID_OVERWRITE = "If-None-Match", "x-oss-forbid-overwrite"
"""Headers that request create-if-absent: the standard one, and that of Alibaba OSS, which ignores
the first."""

DIGEST, MAKER = "dpstream-sha256", "dpstream-maker"
"""Metadata of an object: its digest and, if made by `create`, the id of that call."""

ABSENT = {"NoSuchKey", "NotFound", "404"}
TAKEN = {
    "PreconditionFailed",
    "412",
    "FileAlreadyExists",
    "ObjectAlreadyExists",
    "BucketAlreadyOwnedByYou",
}
CONFLICTING = {"ConditionalRequestConflict", "OperationAborted"}
UNKNOWN = {"NotImplemented", "InvalidArgument", "InvalidRequest", "501"}
UNWANTED = {"NoSuchBucket", "InvalidBucketName", "RequestTimeTooSkewed"}

_MULTIPART, _PART, _CHUNK = 16 << 20, 8 << 20, 1 << 20
"""Bytes: threshold of multipart uploads, size of a part, size of a read."""

_TRANSFER = TransferConfig(
    multipart_threshold=_MULTIPART,
    multipart_chunksize=_PART,
    max_concurrency=4,
    preferred_transfer_client="classic",
)


class _Taken(StoreError):
    """An object with this key exists."""


class _Conflict(StoreError):
    """A concurrent write to this key; neither succeeded yet."""


class _Unknown(StoreError):
    """The store does not support the request."""


class _Cut(StoreError):
    """The connection broke while an object was being read."""


def _again(kind: type[StoreError]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Retries, at growing random intervals, errors that boto3 itself does not retry."""
    return retry(
        retry=retry_if_exception_type(kind),
        wait=wait_random_exponential(multiplier=0.05, max=5),
        stop=stop_after_attempt(8),
        reraise=True,
    )


class S3Store:
    """Objects below a prefix of a bucket (`ports.Store`).

    Throttling, 5xx and broken connections are retried (at most `attempts` times), then raise
    StoreError. Uploads carry their MD5, so that the store rejects damaged ones; objects carry their
    SHA-256 digest, which is checked on reading (DigestMismatch). `create` marks the object with an
    id of the call. If the store answers that the object exists, `create` compares that id, so that
    it returns True even if the answer to its own first attempt was lost. If no attempt is answered,
    it raises StoreError and may have created the object. Alibaba OSS may accept two simultaneous
    creates of one key.
    """

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self._root = settings.prefix and f"{settings.prefix}/"
        encryption = settings.encryption
        self._encrypted = {"ServerSideEncryption": encryption} if encryption else {}
        self._create_header: str = settings.create_by or IF_NONE_MATCH
        self._probed = settings.create_by is not None
        self._probing = threading.Lock()
        self._client = _client(settings)
        events = self._client.meta.events
        events.register("before-call.s3.PutObject", self._set_create_header)
        for request in ("PutObject", "UploadPart"):
            events.register(f"before-call.s3.{request}", _add_md5)
        events.register("before-sign.s3.PutObject", _send_at_once)

    def __repr__(self) -> str:
        where = self.settings.endpoint or "AWS"
        return f"s3://{self.settings.bucket}/{self.settings.prefix} at {where}"

    def probe(self) -> None:
        """Find out which header makes this store create only absent objects, by creating a key
        twice. Raises `Refused` if none does, for wrong credentials and for a missing bucket."""
        with self._probing:
            self._probe()

    def make_bucket(self) -> None:
        """Create the bucket if it does not exist."""
        region = self.settings.region or "us-east-1"  # the default; S3 refuses it as a constraint
        constraint = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        where = {} if region == "us-east-1" else constraint
        with suppress(_Taken), self._converting_errors("the bucket"):
            self._client.create_bucket(Bucket=self.settings.bucket, **where)

    def get(self, key: str, most: int | None = None) -> bytes:
        name, body = self._name(key), BytesIO()
        try:
            self._read(name, body, most)
        except DigestMismatch as error:
            error.found = body.getvalue()
            raise
        return body.getvalue()

    def put(self, key: str, data: bytes) -> None:
        name = self._name(key)
        self._write(name, BytesIO(data))

    def create(self, key: str, data: bytes) -> bool:
        """True if and only if this call created the object; limited to 5 GB."""
        name = self._name(key)
        if not self._probed:
            with self._probing:
                if not self._probed:
                    self._probe()
        return self._create(name, data)

    def exists(self, key: str) -> bool:
        try:
            self._head(self._name(key))
        except NotFound:
            return False
        return True

    def list(self, prefix: str, after: str = "") -> Iterable[str]:
        """Keys that start with `prefix` and come after `after`, sorted. Raises StoreError for an
        invalid prefix."""
        beyond = {"StartAfter": self._root + after} if after else {}
        pages = self._pages(prefix, **beyond)
        found = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return sorted(filter(is_key, map(self._key_of, found)))

    def entries(self, folder: str) -> Iterable[str]:
        """Keys and folders directly in `folder`, sorted (`ports.Store`)."""
        pages = list(self._pages(folder, Delimiter="/"))
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        folders = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ())]
        found = [key for key in map(self._key_of, keys) if is_key(key)]
        return sorted(found + [each for each in map(self._key_of, folders) if is_key(each[:-1])])

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        start = self._root + checked_prefix(prefix)
        pages = self._client.get_paginator("list_objects_v2")
        with self._converting_errors(start):
            yield from pages.paginate(Bucket=self.settings.bucket, Prefix=start, **options)

    def _key_of(self, name: str) -> str:
        return name.removeprefix(self._root)

    def delete(self, key: str) -> None:
        self._delete(self._name(key))

    def upload(self, key: str, path: Path) -> None:
        name = self._name(key)
        with file_errors(path), path.open("rb") as file:
            self._write(name, file)

    def download(self, key: str, path: Path) -> None:
        name = self._name(key)
        with file_errors(path), arriving(path) as file:
            self._read(name, file)

    def _name(self, key: str) -> str:
        return self._root + checked(key)

    def _address(self, name: str) -> dict[str, str]:
        return {"Bucket": self.settings.bucket, "Key": name}

    def _head(self, name: str) -> dict[str, str]:
        """An object's metadata. Raises NotFound."""
        with self._converting_errors(name):
            found = self._client.head_object(**self._address(name))
        return _metadata(found)

    def _delete(self, name: str) -> None:
        with suppress(NotFound), self._converting_errors(name):
            self._client.delete_object(**self._address(name))

    @_again(_Cut)
    def _read(self, name: str, file: BinaryIO, most: int | None = None) -> None:
        file.seek(0)
        file.truncate()
        digest = hashlib.sha256()
        with self._converting_errors(name):
            found = self._client.get_object(**self._address(name))
        with closing(found["Body"]) as body:
            bounded(name, found["ContentLength"], most)
            for chunk in self._chunks(name, body):
                digest.update(chunk)
                file.write(chunk)
        if _metadata(found).get(DIGEST, digest.hexdigest()) != digest.hexdigest():
            raise DigestMismatch(f"{self}: {name}: the content differs from what was stored")

    def _chunks(self, name: str, body: Any) -> Iterator[bytes]:
        try:
            yield from body.iter_chunks(_CHUNK)
        except BotoCoreError as error:
            raise _Cut(f"{self}: {name}: {error}") from error

    def _write(self, name: str, file: BinaryIO) -> None:
        """Write an object from an open file, in parts if it is large."""
        digest = digested(file, hashlib.sha256()).hexdigest()
        extra = {"Metadata": {DIGEST: digest}, **self._encrypted}
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        with self._converting_errors(name):
            if size < _MULTIPART:
                self._client.put_object(**self._address(name), Body=file, **extra)
            else:
                self._client.upload_fileobj(
                    file, **self._address(name), ExtraArgs=extra, Config=_TRANSFER
                )

    def _create(self, name: str, data: bytes) -> bool:
        maker = uuid.uuid4().hex
        try:
            self._write_if_absent(name, data, maker)
        except _Taken:
            with suppress(NotFound):  # deleted meanwhile
                return self._head(name).get(MAKER) == maker
            return False
        return True

    @_again(_Conflict)
    def _write_if_absent(self, name: str, data: bytes, maker: str) -> None:
        metadata = {DIGEST: hashlib.sha256(data).hexdigest(), MAKER: maker}
        with self._converting_errors(name):
            self._client.put_object(
                **self._address(name),
                Body=data,
                IfNoneMatch="*",
                Metadata=metadata,
                **self._encrypted,
            )

    def _set_create_header(self, params: dict[str, Any], **_: Any) -> None:
        """Called by botocore for each PutObject before signing: sets the create-if-absent
        header."""
        headers = params["headers"]
        if self._create_header == FORBID_OVERWRITE and headers.pop(IF_NONE_MATCH, None):
            headers[FORBID_OVERWRITE] = "true"

    def _probe(self) -> None:
        ways = (self._create_header,) if self._probed else (IF_NONE_MATCH, FORBID_OVERWRITE)
        for way in ways:
            self._create_header = way
            if self._creates_only_absent():
                self._probed = True
                return
        raise Refused(
            f"{self}: the store overwrites existing objects despite {IF_NONE_MATCH} and "
            f"{FORBID_OVERWRITE}; dpstream requires a store that honours one of them (Alibaba OSS: "
            "a bucket without versioning)"
        )

    def _creates_only_absent(self) -> bool:
        name = f"{self._root}{PROBES}{uuid.uuid4().hex}"
        try:
            made = self._create(name, b"first")
            return made and not self._create(name, b"second")
        except _Unknown:
            return False
        finally:
            # Without the right to delete, the probe object stays; it is not listed.
            with suppress(StoreError):
                self._delete(name)

    @contextmanager
    def _converting_errors(self, name: str) -> Iterator[None]:
        """Converts errors of boto3 into StoreError."""
        try:
            yield
        except ClientError as error:
            raise self._meaning(name, error) from error
        except NoCredentialsError as error:
            raise Refused(
                f"{self}: no credentials found; set DPSTREAM_STORE_ACCESS_KEY and "
                "DPSTREAM_STORE_SECRET_KEY, or AWS credentials"
            ) from error
        except SSLError as error:
            raise Refused(f"{self}: {error}") from error
        except (BotoCoreError, HTTPError) as error:  # HTTPError: a truncated error response
            raise StoreError(f"{self}: {name}: {error}") from error

    def _meaning(self, name: str, error: ClientError) -> StoreError:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = error.response["Error"].get("Code", str(status))
        message = f"{self}: {name}: {code} {error.response['Error'].get('Message', '')[:300]}"
        if code in ABSENT:
            return NotFound(f"no object {name!r}")
        for kind, codes in _KINDS.items():
            if code in codes:
                return kind(message)
        return Refused(message) if status in (401, 403) else StoreError(message)


_KINDS = {_Taken: TAKEN, _Conflict: CONFLICTING, _Unknown: UNKNOWN, Refused: UNWANTED}


@cache
def _service_model() -> Any:
    """botocore's description of S3, loaded from its files once per process."""
    return botocore.loaders.create_loader()


class _Rrsa(botocore.credentials.CredentialProvider):  # type: ignore[misc]  # botocore is untyped
    """Keys of Alibaba Cloud's token service, renewed before they expire."""

    METHOD = CANONICAL_NAME = "rrsa"

    def load(self) -> Any:
        return botocore.credentials.DeferredRefreshableCredentials(self._keys, self.METHOD)

    def _keys(self) -> Any:
        try:
            return rrsa.credentials(rrsa.endpoint())
        except (OSError, ValueError, KeyError) as error:
            raise CredentialRetrievalError(provider=self.METHOD, error_msg=str(error)) from error


def _client(settings: S3Settings) -> Any:
    access, secret = settings.access_key, settings.secret_key
    core = botocore.session.get_session()
    core.register_component("data_loader", _service_model())
    if rrsa.available():
        core.get_component("credential_provider").insert_before("env", _Rrsa())
    session = boto3.session.Session(
        botocore_session=core,
        aws_access_key_id=access and access.get_secret_value(),
        aws_secret_access_key=secret and secret.get_secret_value(),
        region_name=settings.region,
    )
    config = Config(
        connect_timeout=5,
        read_timeout=settings.silence,
        retries={"mode": "standard", "total_max_attempts": settings.attempts},
        max_pool_connections=32,
        tcp_keepalive=True,
        s3={"addressing_style": settings.addressing},
        request_checksum_calculation="when_required",  # OSS takes no trailing checksums
        response_checksum_validation="when_required",
    )
    verify = None if settings.ca_file is None else str(settings.ca_file)
    return session.client("s3", endpoint_url=settings.endpoint, verify=verify, config=config)


def _metadata(found: dict[str, Any]) -> dict[str, str]:
    """Metadata of a response with lower-case names: some servers capitalise them."""
    return {name.lower(): value for name, value in found["Metadata"].items()}


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Called by botocore for each request that carries (part of) an object. MD5 is the one checksum
    that every store verifies."""
    body = params["body"]
    file = BytesIO(body) if isinstance(body, bytes) else body
    digest = digested(file, hashlib.md5(usedforsecurity=False))
    params["headers"]["Content-MD5"] = b64encode(digest.digest()).decode()


def _send_at_once(request: Any, **_: Any) -> None:
    """Called by botocore before a request is signed. Removes `Expect: 100-continue`, which costs a
    round trip, from small uploads."""
    body = request.data
    if isinstance(body, BytesIO) and body.getbuffer().nbytes <= _CHUNK:
        del request.headers["Expect"]  # no error where there is none
        request.data = body.getvalue()
