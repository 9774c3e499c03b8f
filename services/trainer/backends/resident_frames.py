"""Keeps the frames of PyTorch trainings in memory.

For every frame of every batch DeePMD-kit's loader starts a thread per quantity, each of which reads
a row of a file: 1.5 ms of Python per frame. Here every frame is read once, by DeePMD-kit itself,
and a batch is a selection of rows. The order of the frames remains that of DeePMD-kit's samplers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from deepmd.pt.utils import dataloader
from deepmd.pt.utils.dataset import DeepmdDataSetForLoader

collate_frames = dataloader.collate_batch
Values = dict[str, Any]


class ResidentFrames(DeepmdDataSetForLoader):  # type: ignore[misc]
    """The frames of one system."""

    _all: Values | None = None
    """All frames, collated; None until the first batch."""

    def __getitems__(self, rows: Sequence[int]) -> Values:
        """A batch; PyTorch calls this method in place of `__getitem__` for each row."""
        if self.modifier is not None:  # may change a frame anew each time
            batch: Values = collate_frames([self[row] for row in rows])
            return batch
        if self._all is None:
            self._all = collate_frames([self[row] for row in range(len(self))])
        index = torch.tensor(rows)
        selected = {name: _selected(values, index) for name, values in self._all.items()}
        return {**selected, "fid": list(rows)}

    def add_data_requirement(self, requirement: Any) -> None:
        self._all = None
        super().add_data_requirement(requirement)


def _selected(values: Any, index: torch.Tensor) -> Any:
    """Rows of a quantity; what the frames of a system have in common is no tensor."""
    return values[index] if isinstance(values, torch.Tensor) else values


def install() -> None:
    """Let DeePMD-kit's loaders use `ResidentFrames`, whose batches are collated already."""
    dataloader.DeepmdDataSetForLoader = ResidentFrames
    dataloader.collate_batch = lambda batch: batch
