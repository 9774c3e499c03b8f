"""Reads what was submitted: the frozen spec and the event in `submitted.json`.

Both objects are written before the coordinator sees the campaign, and the ledger contains the event
as well. Reports and exports check that the three agree.
"""

from __future__ import annotations

from pydantic import ValidationError

from dpstream.services.coordinator.state import timeless
from dpstream.shared.codec import decode
from dpstream.shared.errors import CorruptLedger, DigestMismatch, NotFound
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
        raise CorruptLedger(f"{key}: not a campaign-submitted event: {first_of(error)}") from error
    if not isinstance(earlier, CampaignSubmitted):
        raise CorruptLedger(f"{key}: not a campaign-submitted event: {earlier.type}")
    return earlier


def submission(store: Store, campaign: str) -> CampaignSubmitted:
    """The complete event that began a campaign. Raises NotFound, or CorruptLedger if it cannot be
    read."""
    key = campaign_uri(campaign, "submitted.json")
    try:
        return _submitted(key, store.get(key))
    except DigestMismatch as error:
        raise CorruptLedger(str(error)) from error


def same_submission(stored: CampaignSubmitted, recorded: CampaignSubmitted) -> bool:
    return timeless(stored) == timeless(recorded)


def check_submitted(store: Store, campaign: str, recorded: CampaignSubmitted | None) -> None:
    """Raises CorruptLedger if the stored submission differs from the one `recorded` in the ledger
    (None: not recorded yet), or the stored spec from the one that was submitted."""
    key, spec_key = (campaign_uri(campaign, name) for name in ("submitted.json", "spec.json"))
    try:
        stored = submission(store, campaign)
    except NotFound:
        return
    if recorded is not None and not same_submission(stored, recorded):
        raise CorruptLedger(f"{key}: differs from the event in the ledger")
    if (spec := Ref.to(spec_key, store.get(spec_key))) != stored.spec:
        raise CorruptLedger(
            f"{spec_key}: sha256 {spec.sha256[:SHOWN]} differs from that of the submitted spec, "
            f"{stored.spec.sha256[:SHOWN]}"
        )


def stored_spec(store: Store, campaign: str) -> Spec:
    """The spec that a campaign was submitted with. Raises CorruptLedger if it cannot be read."""
    key = campaign_uri(campaign, "spec.json")
    try:
        return Spec.model_validate_json(store.get(key))
    except ValidationError as error:
        raise CorruptLedger(f"{key}: not a valid spec: {first_of(error)}") from error
