"""What a campaign has stored, to be deleted. Labels are shared by all campaigns and stay."""

from __future__ import annotations

from dpstream.services.coordinator.ledger.ledger import finished_uri, load_state
from dpstream.shared.errors import CorruptLedger, DigestMismatch
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri


def still_runs(store: Store, campaign: str) -> bool:
    """Whether a coordinator may serve the campaign; not if its ledger is damaged."""
    try:
        return load_state(store, campaign).finished is None
    except (CorruptLedger, DigestMismatch, ValueError):
        return False


def objects_of(store: Store, campaign: str) -> list[str]:
    """Keys of all objects of a campaign, in the order in which they can be deleted: until the last
    two are, it is still listed, and the deletion can be repeated."""
    last = [campaign_uri(campaign, "spec.json"), finished_uri(campaign)]
    keys = [key for key in store.list(f"campaigns/{campaign}/") if key not in last]
    return [*keys, *filter(store.exists, last)]
