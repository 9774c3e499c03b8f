"""Archives a campaign that has ended: one file with everything, compared with its digests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from dpstream.export.archive import archive_of, differing_files
from dpstream.export.checksums import damaged_files, digest_of
from dpstream.export.folder import export
from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger.archive_mark import ArchiveMark
from dpstream.shared.errors import SpecError
from dpstream.shared.ports import Store
from dpstream.shared.store.folder import FolderStore


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
