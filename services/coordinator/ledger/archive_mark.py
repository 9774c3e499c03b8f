"""The mark of a campaign that `dpstream archive` has put away: lists leave the campaign out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpstream.shared.errors import DigestMismatch, NotFound
from dpstream.shared.messages import CampaignFinished
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri

MARKS = "archived"
"""Folder of a campaign's marks."""


class ArchiveMark(BaseModel):
    """Where a campaign was archived."""

    model_config = ConfigDict(frozen=True)

    file: str
    sha256: str
    size: int = Field(description="bytes")
    time: float = Field(description="s since the epoch")

    def describe(self) -> str:
        return f"{self.file} ({self.size / 1e6:.1f} MB, sha256 {self.sha256[:12]})"


def mark_archived(store: Store, last: CampaignFinished, mark: ArchiveMark) -> None:
    """Mark a campaign as archived, as long as this verdict on it stands. Raises StoreError."""
    store.create(_key(last), mark.model_dump_json().encode())


def mark_of(store: Store, last: CampaignFinished) -> ArchiveMark | None:
    """Where a campaign with this verdict was archived; None if it was not, or the mark is
    damaged. One that has gone on since has another verdict. Raises StoreError."""
    try:
        return ArchiveMark.model_validate_json(store.get(_key(last)))
    except (NotFound, DigestMismatch, ValidationError):
        return None


def _key(last: CampaignFinished) -> str:
    return campaign_uri(last.campaign, MARKS, f"{last.id}.json")
