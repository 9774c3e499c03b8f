"""What a simulation assumes: the section `simulation` of the fleet file.

Prices, sizes and limits of the pools are those of the pools themselves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from dpstream.shared.codec import kind_of
from dpstream.shared.messages import COMMANDS
from dpstream.shared.spec.base import Section, Share
from dpstream.shared.spec.errors import did_you_mean
from dpstream.shared.spec.times import SecondsOrZero, seconds_of
from dpstream.shared.values import Name, stable_seed


def _times_of(value: Any) -> Any:
    """Reads a single time as a mean without deviation."""
    return {"mean": value} if isinstance(value, (int, float, str)) else value


class Times(Section):
    """How long something takes: log-normal with this mean and standard deviation, limited to
    `least` and `most`; or one of the observed `values`."""

    mean: SecondsOrZero = Field(default=0.0, description="mean before the limits")
    sd: SecondsOrZero = Field(default=0.0, description="standard deviation before the limits")
    least: SecondsOrZero = Field(default=0.0, description="shorter times become this")
    most: SecondsOrZero | None = Field(default=None, description="longer times become this")
    values: tuple[Annotated[float, BeforeValidator(seconds_of), Field(ge=0)], ...] = Field(
        default=(), description="observed times, in place of a distribution"
    )

    @model_validator(mode="after")
    def _possible(self) -> Times:
        if self.sd and not self.mean:
            raise ValueError("sd: requires a mean above 0")
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most: {self.most:g}: must be at least least ({self.least:g})")
        return self

    def draw(self, *what: object) -> float:
        """Seconds; the same for the same `what`."""
        if not self.values and not self.sd:
            return self._limited(self.mean)
        drawn = random.Random(stable_seed(*what))
        if self.values:
            return drawn.choice(self.values)
        variance = math.log1p((self.sd / self.mean) ** 2)
        return self._limited(
            drawn.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        )

    def _limited(self, seconds: float) -> float:
        return max(self.least, min(seconds, math.inf if self.most is None else self.most))


TimesOrSeconds = Annotated[
    Times, BeforeValidator(_times_of, json_schema_input_type=Times | float | str)
]
KINDS: tuple[str, ...] = tuple(kind_of(kind) for kind in COMMANDS)
USUAL: Mapping[str, Times] = {
    "train": Times(mean=1800),
    "explore": Times(mean=600, sd=120),
    "judge": Times(mean=30),
    "screen": Times(mean=30),
    "select": Times(mean=10),
    "label": Times(mean=600, sd=400, least=10),
    "reference": Times(mean=3600),
    "audit": Times(mean=30),
    "measure": Times(mean=60),
    "verify": Times(mean=600),
}
"""Where nothing else is given. `label` is the time of one frame, `explore` of one trajectory."""


class PoolAssumptions(Section):
    """The machines of one pool."""

    wait: TimesOrSeconds = Field(
        default=Times(), description="time in the queue of the fleet engine, or until a node is up"
    )
    start: TimesOrSeconds = Field(
        default=Times(mean=15), description="from the start of a worker to its first message"
    )
    image_pull: TimesOrSeconds = Field(
        default=Times(),
        description="added to the start of each worker beyond those that ran at once before",
    )
    capacity: int | None = Field(
        default=None, ge=0, description="workers that the engine can run at once; default: max"
    )
    preemptions: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the running workers that are reclaimed in an hour"
    )
    notice: bool = Field(
        default=True,
        description="whether a reclaimed worker gets SIGTERM and releases its tasks before it ends",
    )


class Messages(Section):
    """The broker, as workers and coordinator see it."""

    delay: SecondsOrZero = Field(default=0.02, description="mean time of a message, s")
    lost: Share = Field(default=0.0001, description="share of messages that never arrive")
    doubled: Share = Field(default=0.01, description="share of messages that arrive twice")


class Assumptions(Section):
    """What a simulation assumes beyond the pools."""

    tasks: dict[str, TimesOrSeconds] = Field(
        default={},
        description=f"times of tasks, by kind: {', '.join(KINDS)}; label: of one frame, explore: "
        "of one trajectory",
    )
    candidates: tuple[Share, ...] = Field(
        default=(0.5, 0.2, 0.1),
        description="share of the checks that finds a candidate, for each committee of a stage in "
        "turn; all frames are accurate for the committee after them",
    )
    rejected: Share = Field(default=0.0, description="share of the labels that is rejected")
    restarts: bool = Field(
        default=False,
        description="whether a label that its worker releases continues from restart files, as "
        "with CP2K and Quantum ESPRESSO",
    )
    pools: dict[Name, PoolAssumptions] = Field(default={}, description="machines, by pool")
    workers: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default={},
        description="workers that run besides the fleet, by queue; default: one for each queue of "
        "trainers and explorers without a pool",
    )
    messages: Messages = Field(default=Messages(), description="loss and delay of messages")

    @model_validator(mode="after")
    def _known_kinds(self) -> Assumptions:
        for kind in self.tasks.keys() - set(KINDS):
            raise ValueError(f"tasks: {kind!r}: no kind of task{did_you_mean(kind, KINDS)}")
        return self

    def times(self, kind: str) -> Times:
        """Of a kind of task; a check of a label takes as long as the label."""
        name = "label" if kind == "check-label" else kind
        return self.tasks.get(name) or USUAL[name]

    def of_pool(self, name: str) -> PoolAssumptions:
        return self.pools.get(name) or PoolAssumptions()
