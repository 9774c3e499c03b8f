"""Reservoir sample of a trajectory's accurate and failed frames, from which the audit draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpstream.shared.atoms.deviation import Verdict
from dpstream.shared.atoms.frames import Batch
from dpstream.shared.values import stable_seed

CLASSES: tuple[Verdict, ...] = ("accurate", "failed")


@dataclass
class Reservoir:
    """A uniform random sample of `size` frames of each class (Algorithm R: J. S. Vitter,
    ACM Trans. Math. Softw. 11, 37, 1985). Draws depend only on seed, class and count, so
    that a sample restored from a checkpoint continues identically."""

    size: int
    seed: int
    seen: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0))
    kept: dict[Verdict, list[Batch]] = field(default_factory=lambda: {c: [] for c in CLASSES})

    def offer(self, verdict: Verdict, row: Batch) -> None:
        """Consider a batch of one frame; candidates are not sampled."""
        if verdict not in self.kept:
            return
        self.seen[verdict] += 1
        kept, seen = self.kept[verdict], self.seen[verdict]
        if len(kept) < self.size:
            kept.append(row)
            return
        place = stable_seed(self.seed, "reservoir", verdict, seen) % seen
        if place < self.size:
            kept[place] = row

    def batch(self) -> Batch | None:
        """The sampled frames, or None, with arrays `failed (n,)` and `weight (n,)`, the inverse
        inclusion probability of each frame."""
        rows = [row for c in CLASSES for row in self.kept[c]]
        if not rows:
            return None
        failed = [c == "failed" for c in CLASSES for _ in self.kept[c]]
        weight = [self.seen[c] / len(self.kept[c]) for c in CLASSES for _ in self.kept[c]]
        batch = joined(rows)
        arrays = {**batch.arrays, "failed": np.array(failed), "weight": np.array(weight)}
        return Batch(batch.species, batch.positions, batch.cells, arrays)

    def restore(self, seen: Mapping[str, int], batch: Batch | None) -> None:
        """Restore the sample that `batch` returned after `seen` frames of each class."""
        self.seen = {c: int(seen[c]) for c in CLASSES}
        self.kept = {c: [] for c in CLASSES}
        if batch is None:
            return
        arrays = {k: v for k, v in batch.arrays.items() if k not in ("failed", "weight")}
        plain = Batch(batch.species, batch.positions, batch.cells, arrays)
        for row, failed in enumerate(batch.arrays["failed"]):
            self.kept["failed" if failed else "accurate"].append(plain.take([row]))


def joined(batches: Sequence[Batch]) -> Batch:
    """Concatenates batches of one composition with the same arrays."""
    first = batches[0]
    cells = [batch.cells for batch in batches if batch.cells is not None]
    return Batch(
        first.species,
        np.concatenate([batch.positions for batch in batches]),
        np.concatenate(cells) if cells else None,
        {k: np.concatenate([batch.arrays[k] for batch in batches]) for k in first.arrays},
    )
