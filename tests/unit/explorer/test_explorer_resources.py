"""What an explorer keeps between tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpstream.services.explorer.handlers import unserved
from dpstream.services.explorer.resources import ExplorerResources
from tests.support.workers.explorer import CH4, ExplorerHarness


def test_the_manifest_of_a_committee_is_read_once_while_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "0" / "model.pth"
    model.parent.mkdir()
    model.write_bytes(b"weights")
    harness = ExplorerHarness(tmp_path, CH4, [model])
    get, read = harness.store.get, list[str]()

    def recorded(key: str, most: int | None = None) -> bytes:
        read.append(key)
        return get(key, most)

    monkeypatch.setattr(harness.store, "get", recorded)
    resources = ExplorerResources(tmp_path / "kept", formats=frozenset({".pth"}), warm=False)
    monkeypatch.setattr("dpstream.services.explorer.resources.KEPT_MANIFESTS", 2)
    first, second, third = harness.committee, *(harness.add_committee(n, [model]) for n in (2, 3))
    for committee, version in ((first, 1), (first, 1), (second, 2), (third, 3), (first, 1)):
        command = harness.explore(committee=committee)
        context = harness.context(command)
        assert unserved(resources, command, context) is None
        assert resources.committee(committee, context).version == version
    manifests = [key for key in read if "committees/" in key]
    assert manifests == [each.uri for each in (first, second, third, first)]
