"""Repairs what a campaign has stored, as far as that is possible.

In this order: the bytes that were written, from a backup or by correcting one flipped bit, which
their digest proves; what the ledger holds a copy of; what can be computed from the rest. Damaged
bytes are moved to `campaigns/NAME/damaged/`, never deleted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dpstream.integrity.overlay import Overlay
from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger.chain import heads, segment_uri
from dpstream.services.coordinator.ledger.examine import Damage, Examination, examine
from dpstream.services.coordinator.ledger.ledger import Segment
from dpstream.services.coordinator.ledger.salvage import Salvaged, salvage
from dpstream.services.coordinator.ledger.submission import stored_spec
from dpstream.shared.errors import CorruptLedger, DigestMismatch, NotFound, SpecError
from dpstream.shared.ports import Store
from dpstream.shared.values import campaign_uri

LONGEST = 64 * 1024
"""Bytes of an object in which a flipped bit is searched for; the time grows with their square."""


@dataclass
class Repair:
    """What is damaged, and what becomes of it. Nothing is written before `write`."""

    store: Overlay
    damaged: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def write(self) -> None:
        self.store.write()

    def lines(self) -> Iterator[str]:
        yield from (f"damaged: {line}" for line in self.damaged)
        yield from (f"recoverable: {line}" for line in self.recovered)
        yield from (f"lost: {line}" for line in self.lost)


def plan(store: Store, campaign: str, backup: Store | None = None, deep: bool = False) -> Repair:
    """Finds all damage, as `verify`, and tries the repair out. `backup`: a store with an earlier
    copy of the campaign. Raises SpecError if the spec cannot be recovered."""
    repair = Repair(Overlay(store))
    found = verify(store, campaign, deep)
    repair.damaged = [str(damage) for damage in found.damage]
    objects = [each for each in found.damage if each not in found.ledger.damage.values()]
    for damage in objects:
        _mend_object(repair, campaign, damage, found.ledger, backup)
    ledger = _restored(repair, campaign, found.ledger, backup)
    if any(number in ledger.damage for number in ledger.valid):
        _continue_without(repair, campaign, ledger)
    for number in ledger.damage:
        if number not in ledger.valid:
            key = segment_uri(campaign, *number)
            _set_aside(repair.store, campaign, key)
            repair.lost.append(f"{key}: its events, written by an overtaken coordinator")
    _set_heads_aside(repair.store, campaign)
    return repair


# ------------------------------------------------------------------------------- single objects


def _mend_object(
    repair: Repair, campaign: str, damage: Damage, ledger: Examination, backup: Store | None
) -> None:
    """Restores an object beside the ledger, or what can be had in its place."""
    if "/snapshots/" in damage.key:
        _set_aside(repair.store, campaign, damage.key)
        repair.recovered.append(f"{damage.key}: not needed, the segments are applied instead")
        return
    written = ledger.manifests[damage.key].body if damage.key in ledger.manifests else None
    if damage.key.endswith("/submitted.json") and ledger.submitted is not None:
        written = ledger.submitted.model_dump_json().encode()
    if written is not None:
        _replace(repair, campaign, damage.key, written, "written again from the ledger")
    elif not _restore(repair, campaign, damage, backup):
        repair.lost.append(f"{damage.key}: {_consequence(damage.key)}")


def _consequence(key: str) -> str:
    if key.startswith("labels/"):
        return "trainings that need this label fail; a new campaign computes it again"
    return "tasks that need it fail; restore it from a backup with --from"


def _restore(repair: Repair, campaign: str, damage: Damage, backup: Store | None) -> bool:
    """Restores the bytes that were written, if they are known or can be proved."""
    for data, source in _candidates(repair.store, damage, backup):
        _replace(repair, campaign, damage.key, data, source)
        return True
    return False


def _candidates(store: Store, damage: Damage, backup: Store | None) -> Iterator[tuple[bytes, str]]:
    """The bytes that were written, with their source."""
    copy = None if backup is None else _bytes(backup, damage.key)
    if copy is not None and _is_written(copy, damage):
        yield copy, "restored from the backup"
    found = _bytes(store, damage.key)
    corrected = None if found is None else unflipped(found, damage.sha256)
    if corrected is not None:
        yield corrected, "one flipped bit corrected"


def _is_written(data: bytes, damage: Damage) -> bool:
    if damage.sha256:
        return hashlib.sha256(data).hexdigest() == damage.sha256
    try:
        segment = Segment.loads(data)  # of release 0.1.0: its digest is not known
    except ValueError:
        return False
    return damage.key.endswith(f"/{segment.seq:08d}-{segment.epoch:06d}.json")


def _bytes(store: Store, key: str) -> bytes | None:
    """The bytes of an object, damaged or not; None if there are none."""
    try:
        return store.get(key)
    except NotFound:
        return None
    except DigestMismatch as error:
        return error.found


def unflipped(data: bytes, sha256: str) -> bytes | None:
    """The bytes with this digest that differ from `data` in one bit; None if there are none."""
    if not sha256 or len(data) > LONGEST:
        return None
    before, wanted = hashlib.sha256(), bytes.fromhex(sha256)
    for place, byte in enumerate(data):
        rest = data[place + 1 :]
        for bit in range(8):
            digest = before.copy()
            digest.update(bytes([byte ^ 1 << bit]))
            digest.update(rest)
            if digest.digest() == wanted:
                return data[:place] + bytes([byte ^ 1 << bit]) + rest
        before.update(data[place : place + 1])
    return None


def _replace(repair: Repair, campaign: str, key: str, data: bytes, source: str) -> None:
    _keep_aside(repair.store, campaign, key)
    repair.store.put(key, data)
    repair.recovered.append(f"{key}: {source}")


def _keep_aside(store: Overlay, campaign: str, key: str) -> None:
    """Copies damaged bytes."""
    data = _bytes(store, key)
    if data is not None:
        name = key.removeprefix(campaign_uri(campaign, ""))
        digest = hashlib.sha256(data).hexdigest()[:12]
        store.create(campaign_uri(campaign, "damaged", f"{name}.{digest}"), data)


def _set_aside(store: Overlay, campaign: str, key: str) -> None:
    """Moves damaged bytes."""
    if store.exists(key):
        _keep_aside(store, campaign, key)
        store.delete(key)


# ------------------------------------------------------------------------------- the ledger


def _restored(
    repair: Repair, campaign: str, ledger: Examination, backup: Store | None
) -> Examination:
    """The ledger after all segments that can be are restored: each gives the digest of the one
    before."""
    left = -1
    while ledger.damage and len(ledger.damage) != left:
        left = len(ledger.damage)
        restored = [_restore(repair, campaign, each, backup) for each in ledger.damage.values()]
        if any(restored):
            ledger = examine(repair.store, campaign)
    return ledger


def _continue_without(repair: Repair, campaign: str, ledger: Examination) -> None:
    """Continues the ledger from before its first lost segment. Raises SpecError if the spec cannot
    be read."""
    try:
        stored_spec(repair.store, campaign)
    except (CorruptLedger, DigestMismatch) as error:
        raise SpecError(f"{error}; restore it first: nothing can be repaired without it") from error
    lost = [number for number in ledger.valid if number in ledger.damage]
    for number in lost:
        _set_aside(repair.store, campaign, segment_uri(campaign, *number))
    result = salvage(repair.store, campaign, ledger, time.time())
    for key in list(repair.store.list(campaign_uri(campaign, "finished"))):  # of every plan
        _set_aside(repair.store, campaign, key)
    rooms = ("manifests", "committees", "plans")
    folders = (campaign_uri(campaign, folder, "") for folder in rooms)
    for key in [key for folder in folders for key in repair.store.list(folder)]:
        # One that is decided again may have the same name and another content.
        if key not in ledger.manifests or ledger.manifests[key].seq >= lost[0][0]:
            _set_aside(repair.store, campaign, key)
    numbers = ", ".join(str(seq) for seq, _ in lost)
    repair.lost.append(
        f"segment {numbers} of the ledger: what it recorded; results that are recorded nowhere "
        "else are computed again"
    )
    repair.recovered.append(_salvaged(result))


def _salvaged(result: Salvaged) -> str:
    return (
        f"the ledger goes on from segment {result.first}: the {result.events} events of "
        f"{result.segments} later segments and {result.trainings} trainings found beside it count "
        "again; labels are found by their frames"
    )


def _set_heads_aside(store: Overlay, campaign: str) -> None:
    """Heads of segments that are no longer there would count as a cut tail."""
    for head in heads(store, campaign):
        if not store.exists(segment_uri(campaign, head.seq, head.epoch)):
            name = f"{head.seq:08d}-{head.epoch:06d}-{head.sha256}"
            _set_aside(store, campaign, campaign_uri(campaign, "heads", name))
