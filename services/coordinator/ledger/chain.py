"""What makes a ledger a hash chain.

Each segment names number, epoch and digest of the one that it follows, so that no segment can be
changed, lost or replaced while its successor stays. The newest segments have no successor yet. A
*head* names a segment that has been written; it is an object that is created once and whose name
says everything, so that heads are listed and never read. Segments of release 0.1.0 name none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from dpstream.shared.errors import CorruptLedger
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri

UNCHAINED = "0.1.0"
"""The release whose segments do not name the one that they follow."""
HEAD_SEGMENTS, HEAD_SECONDS = 100, 60.0
"""A head is due after so many segments, or so long after the last one."""


@dataclass(frozen=True)
class Link:
    """A segment: its number, the epoch of its writer and the SHA-256 of its bytes."""

    seq: int
    epoch: int
    sha256: str

    @staticmethod
    def to(seq: int, epoch: int, data: bytes) -> Link:
        return Link(seq, epoch, hashlib.sha256(data).hexdigest())


def segment_name(seq: int, epoch: int) -> str:
    """The name of a segment and of the snapshot after it."""
    return f"{seq:08d}-{epoch:06d}"


def segment_uri(campaign: str, seq: int, epoch: int) -> str:
    return campaign_uri(campaign, "ledger", f"{segment_name(seq, epoch)}.json")


def write_head(store: Store, campaign: str, link: Link) -> None:
    store.create(f"{_folder(campaign)}{segment_name(link.seq, link.epoch)}-{link.sha256}", b"{}")


def heads(store: Store, campaign: str, from_seq: int = 0) -> Iterable[Link]:
    """The heads of segments with this number and above, in order."""
    folder = _folder(campaign)
    for key in store.list(folder, after=f"{folder}{from_seq:08d}"):
        try:
            seq, epoch, sha256 = key.removeprefix(folder).split("-")
            yield Link(int(seq), int(epoch), sha256)
        except ValueError as error:
            raise CorruptLedger(f"{key}: not the name of a head") from error


def check_link(follows: Link | None, before: Link | None, seq: int, code: str) -> None:
    """Raises CorruptLedger if segment `seq`, written by release `code`, follows another segment
    than `before` (None: not known)."""
    if follows is None:
        if seq > 1 and code != UNCHAINED:
            raise CorruptLedger(f"segment {seq} of the ledger does not name the one it follows")
    elif before is not None and follows != before:
        raise CorruptLedger(
            f"segment {before.seq} of the ledger by epoch {before.epoch} differs from the one that "
            f"segment {seq} follows"
        )


def check_heads(store: Store, campaign: str, last: Link | None, seq: int = 0) -> None:
    """Raises CorruptLedger if the ledger was once longer than up to its segment `last` (None: not
    read; then up to number `seq`), or if that segment differs from the one that was written. Lists
    only heads from there on."""
    ends = seq if last is None else last.seq
    for head in heads(store, campaign, ends):
        key = segment_uri(campaign, head.seq, head.epoch)
        if last is not None and (head.seq, head.epoch) == (last.seq, last.epoch):
            if head != last:
                raise CorruptLedger(f"{key}: the content differs from what was written")
        # Segments of overtaken writers have heads as well.
        elif not store.exists(key):
            raise CorruptLedger(
                f"{campaign}: the ledger is cut off: it ends with segment {ends}, but segment "
                f"{head.seq} was written"
            )


def _folder(campaign: str) -> str:
    return campaign_uri(campaign, "heads", "")
