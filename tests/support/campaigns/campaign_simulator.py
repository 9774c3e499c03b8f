"""A small campaign, and results of its commands that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from dpstream.services.coordinator.simulation.results import SimulatedResults, key, ref
from dpstream.services.coordinator.simulation.results import offered_key as offered_key
from dpstream.shared import messages as m
from dpstream.shared.cross_check import ComparedLabel, CrossCheck, ImportedLabel
from dpstream.shared.spec import Spec
from dpstream.shared.values import DeviceFacts, FrameRef, Recipe, stable_id

CHECKS = 10
DEVICE = DeviceFacts(
    kind="cuda",
    model="NVIDIA H200",
    memory_mib=143771,
    driver="580.159.04",
    runtime="13.0",
    backend="pytorch 2.11.0",
    precision="float64",
)
RECIPE = Recipe(
    code="tblite", version="1", settings={"method": "GFN2-xTB"}, charge=0, multiplicity=1
)


def spec(**changes: Any) -> Spec:
    data: dict[str, Any] = {
        "name": "world",
        "mode": "lockstep",
        "type_map": ["H", "C"],
        "systems": {"methane": {"structures": ["x"]}},
        "initial": {"perturb": {"copies": 6}},
        "training": {"members": 3},
        "md": {"steps": 100, "every": 10, "trajectories": 2, "chunk": 5},
        "trust": {"low": 0.1, "high": 0.3},
        "stages": [
            {"name": "cold", "systems": ["methane"], "temperatures": [50.0, 100.0]},
            {"name": "hot", "systems": ["methane"], "temperatures": [300.0]},
        ],
        "selection": {"per_round": 4, "select_every": 2},
        "labels": {"bundle": 3},
        "audit": {"per_round": 3, "min_frames": 4, "min_trajectories": 2},
        "convergence": {"rounds": 1},
        "streaming": {"retrain_after": 3},
        "verification": {
            "reference_md": {"system": "methane", "trajectories": 2},
        },
    }
    return Spec.model_validate(data | changes)


PROPERTIES = [{"property": "elastic", "system": "methane", "tolerance": 0.05}]
POINTS = 3
"""Structures per property."""


def point_keys(of: Spec) -> set[str]:
    wanted = range(len(of.verification.properties))
    return {key("point", number, i) for number in wanted for i in range(POINTS)}


def cross_check(count: int = 5) -> CrossCheck:
    """Imported labels, of which forces may differ by 0.05 eV/Å."""
    return CrossCheck(
        labels=tuple(
            ImportedLabel(
                frame=FrameRef(batch=ref("imported"), index=i, key=key("imported", i)),
                label=ref(f"imported-{i}"),
                formula="C1H4",
            )
            for i in range(count)
        ),
        forces=0.05,
    )


def submission(
    of: Spec, frames: int = 6, cross_check: CrossCheck | None = None
) -> m.CampaignSubmitted:
    start = FrameRef(batch=ref("start"), index=0, key=key("start"))
    return m.CampaignSubmitted(
        id=stable_id("campaign", of.name),
        campaign=of.name,
        time=1.0,
        spec=ref("spec"),
        frames=tuple(
            FrameRef(batch=ref("initial"), index=i, key=key("initial", i)) for i in range(frames)
        ),
        systems=dict.fromkeys(of.systems, (start,)),
        atoms=dict.fromkeys(of.systems, 5),
        recipe=RECIPE,
        points=tuple(
            tuple(
                FrameRef(batch=ref("points"), index=i, key=key("point", number, i))
                for i in range(POINTS)
            )
            for number in range(len(of.verification.properties))
        ),
        cross_check=cross_check,
    )


class CampaignSimulator(SimulatedResults):
    """Answers commands. `ripe`: the committee version from which on all frames are accurate. `off`:
    how far the elastic constant by a committee version is from the recipe's, as a share; the
    final model counts as version 0. `label_seconds`: of each label; at 0 the times do not determine
    how many frames a label task has. `writer`: of the label of a frame that is in the store
    already, None for a frame without one; `wrong`: writers whose labels are; `compared`: imported
    labels beside new ones, by frame key."""

    def __init__(
        self,
        ripe: int = 3,
        reject: Callable[[str], bool] = lambda key: False,
        off: Callable[[int], float] = lambda version: 0.04,
        label_seconds: float = 0.0,
        writer: Callable[[str], str | None] = lambda key: None,
        wrong: Collection[str] = (),
        compared: Mapping[str, ComparedLabel] | None = None,
    ) -> None:
        super().__init__(checks=CHECKS, device=DEVICE)
        self.ripe, self.reject, self.seconds = ripe, reject, label_seconds
        self._off, self._writer, self.wrong = off, writer, wrong
        self.labelled: list[str] = []
        self.by_key = dict(compared or {})

    def is_ripe(self, version: int) -> bool:
        return version >= self.ripe

    def found(self, command: m.Explore, checks: int) -> int:
        return 0 if command.version >= self.ripe + 2 * command.stage else 2

    def rejects(self, frame: str) -> bool:
        self.labelled.append(frame)
        return self.reject(frame)

    def writer(self, frame: str) -> str | None:
        return self._writer(frame)

    def label_seconds(self, frame: str) -> float:
        return self.seconds

    def off(self, version: int) -> float:
        return self._off(version)

    def difference(self, frame: str) -> str:
        wrong = self.writer(frame) in self.wrong
        return "its forces differ by up to 0.5 eV/Å" if wrong else ""

    def compared(self, frame: str) -> ComparedLabel | None:
        return self.by_key.get(frame)

    def frames_per_verdict(self, command: m.Label) -> int:
        """As the number of the attempt: attempts divide the frames differently."""
        return command.attempt
