"""Archives a campaign that has ended: one file with everything, compared with its digests, and a
mark in the store, with which `dpstream list` leaves the campaign out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpstream.export.archive import archive_of, differing_files
from dpstream.export.checksums import damaged_files, digest_of
from dpstream.export.folder import MARKS, export
from dpstream.integrity.verify import verify
from dpstream.shared.errors import DigestMismatch, NotFound, SpecError
from dpstream.shared.messages import CampaignFinished
from dpstream.shared.ports import Store
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri


class ArchiveMark(BaseModel):
    """Where a campaign was archived."""

    model_config = ConfigDict(frozen=True)

    file: str
    sha256: str
    size: int = Field(description="bytes")
    time: float = Field(description="s since the epoch")

    def describe(self) -> str:
        return f"{self.file} ({self.size / 1e6:.1f} MB, sha256 {self.sha256[:12]})"


def write_verified(store: Store, campaign: str, file: Path, now: float) -> ArchiveMark:
    """Write everything of a campaign to `file`, which appears when it is complete and what is in it
    was compared with its digests. Raises SpecError if anything is damaged or missing."""
    if file.exists():
        raise SpecError(f"--output: {file}: already exists; give another file")
    if not file.parent.is_dir():
        raise SpecError(f"--output: {file}: there is no folder {file.parent}; create it first")
    with tempfile.TemporaryDirectory(prefix=".dpstream-", dir=file.parent) as room:
        folder = Path(room) / campaign
        export(store, campaign, folder, archive=True)
        for line in _damage(campaign, folder):
            raise SpecError(
                f"{campaign}: not archived: {line}; next: dpstream repair {campaign}, or dpstream "
                f"export {campaign} --archive for what there is"
            )
        whole = archive_of(folder)
        size, digest = whole.stat().st_size, digest_of(whole)
        whole.rename(file)
    return ArchiveMark(file=str(file.absolute()), sha256=digest, size=size, time=now)


def _damage(campaign: str, folder: Path) -> Iterator[str]:
    yield from map(str, verify(FolderStore(folder), campaign, deep=True).damage)
    yield from damaged_files(folder)
    yield from differing_files(folder)


def mark_archived(store: Store, last: CampaignFinished, mark: ArchiveMark) -> None:
    """Mark a campaign as archived, as long as this verdict on it stands. Raises StoreError."""
    store.create(_key(last), mark.model_dump_json().encode())


def mark_of(store: Store, last: CampaignFinished) -> ArchiveMark | None:
    """Where a campaign with this verdict was archived; None if it was not, or the mark is
    damaged. One that has gone on since has another verdict."""
    try:
        return ArchiveMark.model_validate_json(store.get(_key(last)))
    except (NotFound, DigestMismatch, ValidationError):
        return None


def _key(last: CampaignFinished) -> str:
    return campaign_uri(last.campaign, MARKS, f"{last.id}.json")
