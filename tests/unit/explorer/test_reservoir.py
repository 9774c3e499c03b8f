"""The reservoir: equal chances, right weights, and a memory that survives being stored."""

from __future__ import annotations

import numpy as np

from dpstream.services.explorer.selection.reservoir import Reservoir, joined
from dpstream.shared.atoms.frames import Batch


def row(number: int) -> Batch:
    times = np.array([float(number)])
    return Batch(("H",), np.full((1, 1, 3), float(number)), None, {"time_ps": times})


def filled(seed: int, frames: int, size: int = 4) -> Reservoir:
    reservoir = Reservoir(size, seed)
    for number in range(frames):
        reservoir.offer("accurate", row(number))
    return reservoir


def test_every_frame_has_the_same_chance() -> None:
    hits = np.zeros(20)
    for seed in range(3000):
        batch = filled(seed, 20).batch()
        assert batch is not None
        hits[batch.arrays["time_ps"].astype(int)] += 1
    # 4 of 20, 3000 times: 600 each, standard deviation 22.
    assert abs(hits - 600).max() < 100


def test_weights_are_inverse_inclusion_probabilities() -> None:
    reservoir = filled(1, 10)
    reservoir.offer("failed", row(99))
    reservoir.offer("candidate", row(50))
    batch = reservoir.batch()
    assert batch is not None
    assert batch.arrays["weight"].tolist() == [2.5] * 4 + [1.0]
    assert batch.arrays["failed"].tolist() == [False] * 4 + [True]
    assert 50.0 not in batch.arrays["time_ps"]


def test_nothing_seen_is_nothing_kept() -> None:
    assert Reservoir(4, 1).batch() is None


def test_a_stored_sample_goes_on_as_if_nothing_had_happened() -> None:
    whole, part = filled(5, 40), filled(5, 17)
    stored = part.batch()
    assert stored is not None
    again = Reservoir(4, 5)
    again.restore(part.seen, Batch.loads(stored.dumps()))
    for number in range(17, 40):
        again.offer("accurate", row(number))
    for wanted, found in zip(whole.kept["accurate"], again.kept["accurate"], strict=True):
        assert wanted.arrays["time_ps"] == found.arrays["time_ps"]
    assert again.seen == whole.seen


def test_joined_keeps_order_and_cells() -> None:
    one = Batch(("H",), np.zeros((1, 1, 3)), np.ones((1, 3, 3)), {"a": np.array([1])})
    two = Batch(("H",), np.ones((2, 1, 3)), np.zeros((2, 3, 3)), {"a": np.array([2, 3])})
    both = joined([one, two])
    assert both.arrays["a"].tolist() == [1, 2, 3]
    assert both.cells is not None
    assert both.cells.shape == (3, 3, 3)
