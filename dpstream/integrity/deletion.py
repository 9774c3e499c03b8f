"""What a campaign has stored, to be deleted. Labels are shared by all campaigns and stay."""

from __future__ import annotations

from pydantic import ValidationError

from dpstream.services.coordinator.ledger.ledger import verdict
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri

LAST = ("spec.json", "plans/", "finished")
"""As long as a campaign has its spec it is listed, and with the others no coordinator takes it for
one that goes on."""


def still_runs(store: Store, campaign: str) -> bool:
    """Whether a coordinator may serve the campaign. Does not read its ledger, which may be damaged
    or of another release."""
    try:
        return verdict(store, campaign) is None
    except ValidationError:
        return True


def objects_of(store: Store, campaign: str) -> list[str]:
    """Keys of all objects of a campaign, in the order in which they can be deleted: a deletion that
    was interrupted can be repeated, and no coordinator begins the campaign again."""
    return sorted(store.list(campaign_uri(campaign, "")), key=_turn)


def _turn(key: str) -> tuple[int, str]:
    name = key.split("/", 2)[2]
    if name == "submitted.json":
        return 0, key
    last = [number for number, start in enumerate(LAST, 2) if name.startswith(start)]
    return (last[0] if last else 1), key
