"""Damage in a real bucket is found, told apart and repaired as in a folder."""

from __future__ import annotations

import pytest

from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger.ledger import load_state
from dpstream.shared.errors import CorruptLedger, DigestMismatch
from dpstream.shared.store.s3 import S3Store
from tests.support.campaigns.coordinator import CoordinatorHarness
from tests.support.campaigns.damaged_campaign import (
    finished,
    half_way,
    of_ledger,
    repaired,
    resumed,
    segments,
)

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("no_log_lines")]


def flip(store: S3Store, key: str, keeps_metadata: bool) -> bytes:
    """Flips a bit, as a failing disk would (with the metadata) or a hand; returns the former
    bytes."""
    address = store._address(store._name(key))
    found = store._client.get_object(**address)
    written: bytes = found["Body"].read()
    data = bytearray(written)
    data[len(data) // 2] ^= 4
    metadata = found["Metadata"] if keeps_metadata else {}
    store._client.put_object(**address, Body=bytes(data), Metadata=metadata)
    return written


@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_a_flipped_bit_in_a_bucket_is_corrected(s3_store: S3Store, keeps_metadata: bool) -> None:
    half_way(s3_store)
    before, key = load_state(s3_store, "world"), segments(s3_store)[3]
    written = flip(s3_store, key, keeps_metadata)
    if keeps_metadata:
        with pytest.raises(DigestMismatch) as noticed:
            s3_store.get(key)
        assert noticed.value.found not in (None, written)
    harness = CoordinatorHarness(s3_store)
    harness.coordinator.open_all()
    assert "00000004-000001" in harness.coordinator.broken["world"] or (
        "segment 4" in harness.coordinator.broken["world"]
    )
    assert of_ledger(repaired(s3_store).recovered) == [f"{key}: one flipped bit corrected"]
    assert s3_store.get(key) == written
    assert load_state(s3_store, "world") == before


def test_a_lost_segment_and_a_cut_tail_in_a_bucket(s3_store: S3Store) -> None:
    half_way(s3_store)
    s3_store.delete(segments(s3_store)[-1])
    with pytest.raises(CorruptLedger, match="cut off"):
        load_state(s3_store, "world")
    s3_store.delete(segments(s3_store)[3])
    assert len(verify(s3_store, "world").ledger.damage) == 2
    repaired(s3_store)
    assert finished(resumed(s3_store)).finished
