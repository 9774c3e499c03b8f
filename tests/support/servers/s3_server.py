"""One real S3 server (SeaweedFS) for the whole session (of each xdist worker), started when first
asked for. Where it is not installed its tests are skipped; in CI they fail."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from dpstream.deploy.devcluster.seaweed import SeaweedServer, server_binary
from dpstream.shared.errors import StoreError
from dpstream.shared.store.s3 import S3Store

BUCKET = "dpstream"


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """A running server with the bucket `BUCKET`. A test that stops it starts it again."""
    require_seaweed()
    server = SeaweedServer(tmp_path_factory.mktemp("seaweed"))
    try:
        server.start()
        server.make_bucket(BUCKET)
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3_store(seaweed: SeaweedServer) -> S3Store:
    """An empty store: a prefix of its own in the bucket."""
    return S3Store(seaweed.settings(BUCKET, f"tests/{uuid.uuid4().hex}"))


def require_seaweed() -> None:
    try:
        server_binary()
    except StoreError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
