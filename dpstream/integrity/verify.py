"""Compares what a campaign has stored with the digests in its ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from dpstream.services.coordinator.ledger.examine import (
    Damage,
    Examination,
    Step,
    damaged_snapshots,
    differing_snapshots,
    examine,
    refs_in,
)
from dpstream.services.coordinator.ledger.submission import same_submission, submission
from dpstream.services.labeler.known_labels import verified
from dpstream.shared.errors import CorruptLedger, DigestMismatch, NotFound
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import fetch
from dpstream.shared.values import Dataset, Ref, campaign_uri
from dpstream.terminal.progress import progress

AT_ONCE = 8
"""Objects read at once."""
BULK = (".npz", ".zip")
"""Suffixes of results that are large and many: trajectories and checkpoints."""


@dataclass
class IntegrityReport:
    ledger: Examination = field(default_factory=Examination)
    damage: list[Damage] = field(default_factory=list)
    read: int = 0
    """Objects that were read and compared, besides the ledger."""
    listed: int = 0
    """Those of which only the existence was checked."""

    def summary(self) -> Iterator[str]:
        """What was compared."""
        yield f"ledger: {self.ledger.chain}"
        listed = f"; {self.listed} more exist, --deep reads them" if self.listed else ""
        yield f"objects: {self.read} compared with their digests{listed}"


def verify(store: Store, campaign: str, deep: bool = False) -> IntegrityReport:
    """Checks the ledger, and every object that it refers to. Trajectories and checkpoints are read
    only if `deep`; then labels are also compared with their frames, and snapshots with the state
    that the segments lead to. Raises StoreError if the store does not answer."""
    with progress("ledger", None) as step:
        ledger = examine(store, campaign, step)
        damage = [*ledger.damage.values(), *damaged_snapshots(store, campaign)]
    result = IntegrityReport(ledger, damage)
    refs = _check_submission(store, campaign, result)
    present = set(store.list(campaign_uri(campaign, "")))
    with progress("objects", len(refs)) as step:
        _check_objects(store, refs, present, deep, result, step)
    if deep and not result.damage:
        result.damage += differing_snapshots(store, campaign)
    return result


def _check_submission(store: Store, campaign: str, result: IntegrityReport) -> list[Ref]:
    """Checks the stored submission. Returns every object that it and the ledger refer to."""
    key, recorded = campaign_uri(campaign, "submitted.json"), result.ledger.submitted
    refs = dict(result.ledger.refs)
    try:
        stored = submission(store, campaign)
    except NotFound:
        return list(refs.values())
    except CorruptLedger as error:
        result.damage.append(Damage(key, str(error).removeprefix(f"{key}: ")))
        return list(refs.values())
    if recorded is None:
        refs |= {ref.uri: ref for ref in refs_in(stored)}
    elif not same_submission(stored, recorded):
        result.damage.append(Damage(key, "differs from the event in the ledger"))
    return list(refs.values())


def _check_objects(
    store: Store,
    refs: list[Ref],
    present: set[str],
    deep: bool,
    result: IntegrityReport,
    step: Step,
) -> None:
    """Checks the objects, and those that they refer to."""
    skipped = [] if deep else [ref for ref in refs if _is_bulk(ref)]
    result.listed += len(skipped)
    for ref in skipped:
        if ref.uri not in present:
            result.damage.append(Damage(ref.uri, "missing", ref.sha256))
        step(ref.uri)
    left = refs if deep else [ref for ref in refs if not _is_bulk(ref)]
    known = {ref.uri for ref in refs}
    check = partial(_check_object, store, deep)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while left:
            some, left = left[: 8 * AT_ONCE], left[8 * AT_ONCE :]
            for ref, (damage, inner) in zip(some, pool.map(check, some), strict=True):
                result.damage += damage
                result.read += 1
                left += [each for each in inner if each.uri not in known]
                known.update(each.uri for each in inner)
                step(ref.uri)


def _is_bulk(ref: Ref) -> bool:
    return ref.uri.endswith(BULK) and ref.uri.startswith("campaigns/") and "/results/" in ref.uri


def _check_object(store: Store, deep: bool, ref: Ref) -> tuple[list[Damage], Sequence[Ref]]:
    """The damage of an object, and what it refers to."""
    try:
        data = fetch(store, ref)
    except NotFound:
        return [Damage(ref.uri, "missing", ref.sha256)], ()
    except DigestMismatch:
        return [Damage(ref.uri, "the content differs from what was written", ref.sha256)], ()
    if deep and ref.uri.startswith("labels/"):
        _, recipe, _, name = ref.uri.split("/")
        try:
            verified(data, recipe, name.partition(".")[0])
        except ValueError as error:
            return [Damage(ref.uri, str(error))], ()
    return [], tuple(_packs(ref, data))


def _packs(ref: Ref, data: bytes) -> Iterator[Ref]:
    """What a dataset refers to: the ledger names the held-out set as one object."""
    if "/inputs/" in ref.uri and ref.uri.endswith(".json"):
        try:
            dataset = Dataset.model_validate_json(data)
        except ValueError:
            return
        yield from (*dataset.packs, *dataset.labels)
