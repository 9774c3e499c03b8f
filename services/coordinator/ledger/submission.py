"""Reads what was submitted: the frozen spec and `submitted.json`."""

from __future__ import annotations

from pydantic import ValidationError

from dpstream.services.coordinator.state import timeless
from dpstream.shared.codec import decode
from dpstream.shared.errors import CorruptLedger, NotFound
from dpstream.shared.messages import CampaignSubmitted
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec
from dpstream.shared.spec.errors import first_of
from dpstream.shared.values import Ref, campaign_uri

SHOWN = 12
"""Digits of a digest in an error."""


def _submitted(key: str, body: bytes) -> CampaignSubmitted:
    try:
        earlier = decode(body)
    except ValidationError as error:
        raise CorruptLedger(f"{key}: not the event that was written: {first_of(error)}") from error
    if not isinstance(earlier, CampaignSubmitted):
        raise CorruptLedger(f"{key}: not the event that was written: {earlier.type}")
    return earlier


def check_submitted(store: Store, campaign: str, told: CampaignSubmitted | None) -> None:
    """CorruptLedger where the submission kept in the store is not what the ledger tells (None:
    it tells of none yet), or the spec is not the one that was submitted."""
    key, spec_key = (campaign_uri(campaign, name) for name in ("submitted.json", "spec.json"))
    try:
        body = store.get(key)
    except NotFound:
        return
    kept = _submitted(key, body)
    if told is not None and timeless(kept) != timeless(told):
        raise CorruptLedger(f"{key}: not the event in the ledger, which it was when written")
    if (found := Ref.to(spec_key, store.get(spec_key))) != kept.spec:
        raise CorruptLedger(
            f"{spec_key}: sha256 {found.sha256[:SHOWN]} is not {kept.spec.sha256[:SHOWN]}, that of "
            "the spec submitted"
        )


def stored_spec(store: Store, campaign: str) -> Spec:
    """The spec that a campaign was begun with; CorruptLedger where it cannot be read."""
    key = campaign_uri(campaign, "spec.json")
    try:
        return Spec.model_validate_json(store.get(key))
    except ValidationError as error:
        raise CorruptLedger(f"{key}: not the spec that was written: {first_of(error)}") from error
