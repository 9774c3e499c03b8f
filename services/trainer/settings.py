"""What a trainer is told by its environment."""

from __future__ import annotations

from shared.settings import WorkerSettings


class TrainerSettings(WorkerSettings):
    """Nothing beyond what every worker is told."""
