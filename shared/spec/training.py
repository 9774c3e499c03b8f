"""Sections on training the committee."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dpstream.shared.atoms.frames import PARAMETERS
from dpstream.shared.spec.base import Positive, Section, Share

ZBL = "zbl"
CPU_BATCH, GPU_BATCH = 32, 1000
"""Atoms of a batch where `batch_atoms` is `auto`. A GPU takes about as long for 1,000 atoms as for
one frame; a CPU takes as long per atom."""


class Repulsion(Section):
    """A table of pair energies replaces the model for atoms whose nearest neighbour is closer than
    `inner`; between `inner` and `outer` both are interpolated (H. Wang et al., Appl. Phys. Lett.
    114, 244101 (2019); DeePMD-kit's use_srtab)."""

    table: str = Field(
        default=ZBL,
        description="zbl: the universal potential of Ziegler, Biersack and Littmark; or a file of "
        "r (Å) and the energies (eV) of all pairs of types, evenly spaced, decaying to zero",
    )
    inner: Positive = Field(description="Å; below: the table only")
    outer: Positive = Field(description="Å; above: the model only")
    smin_alpha: Positive = Field(
        default=0.1, description="DeePMD-kit's smin_alpha, smoothing of the nearest distance"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Repulsion:
        if self.inner >= self.outer:
            raise ValueError(f"inner ({self.inner:g}) must be below outer ({self.outer:g})")
        return self


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Init(Section):
    """An existing model whose weights initialise every cold training. Its architecture is used
    too: `training.input.model` has no effect."""

    model: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        min_length=1, description="a file, or one file per member"
    )
    how: Literal["init-model", "init-frz-model", "finetune"] = Field(
        description="as in DeePMD-kit: init-model: from a checkpoint; init-frz-model: from a "
        "frozen model; finetune: from a pretrained model, with atomic energies adapted to the data"
    )
    branch: str | None = Field(
        default=None,
        min_length=1,
        description="head of a multitask model to start from, as DeePMD-kit's --model-branch; "
        "only with finetune and backend pytorch",
    )


class Final(Section):
    """The final, longer cold training on all labels."""

    steps_factor: Positive = Field(
        default=3.0, description="number of steps, relative to a cold training"
    )


def _auto_or_count(value: Any) -> Any:
    if value != "auto" and not (type(value) is int and value >= 1):
        raise ValueError("must be auto or a whole number from 1")
    return value


BatchAtoms = Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_count)]


def _frames(batch_atoms: int, atoms: int, frames: int) -> int:
    """Frames in a step."""
    return max(1, min(math.ceil(batch_atoms / atoms), frames))


class Training(Section):
    members: int = Field(default=4, ge=2, le=16, description="models in the committee")
    backend: Literal["tensorflow", "pytorch", "jax"] = Field(
        default="tensorflow", description="DeePMD-kit backend"
    )
    input: dict[str, Any] = Field(
        default={},
        description="sections of a DeePMD-kit input.json, merged over the defaults key by key; "
        "dpstream sets type_map, seeds, systems and the number of steps",
    )
    member_input: dict[int, dict[str, Any]] = Field(
        default={}, description="further overrides for single members, by number from 0"
    )
    batch_atoms: BatchAtoms = Field(
        default="auto",
        description="frames per batch = ceil(batch_atoms / n_atoms); auto: "
        f"{GPU_BATCH} if a trainer on a GPU is up when the first training begins, else "
        f"{CPU_BATCH}; in lockstep always {CPU_BATCH}",
    )
    epochs: Positive = Field(default=60.0, description="passes over the dataset")
    min_steps: int = Field(default=1000, ge=1, description="smallest number of steps")
    max_steps: int = Field(default=1_000_000, ge=1, description="largest number of steps")
    decay: Literal["scaled", "fixed"] = Field(
        default="scaled",
        description="scaled: the learning rate reaches its final value at the last step; fixed: "
        "decay_steps as given, as in DP-GEN",
    )
    warm: Share = Field(
        default=0.0,
        description="steps of a warm start, relative to a cold training; 0: no warm starts",
    )
    warm_start_lr: Positive = Field(
        default=1e-4, description="initial learning rate of warm starts and of training.init"
    )
    warm_input: dict[str, Any] = Field(
        default={}, description="sections of input.json for warm starts, merged over all others"
    )
    cold_every: int = Field(default=4, ge=1, description="every n-th committee version starts cold")
    limited_above: Positive = Field(
        default=0.5,
        description="a member is training-limited if its force RMSE on its training frames exceeds "
        "this fraction of the trust level `low`",
    )
    lengthen: Annotated[float, Field(ge=1)] = Field(
        default=2.0, description="factor on the steps after a training-limited committee"
    )
    max_lengthen: Annotated[float, Field(ge=1)] = Field(
        default=4.0, description="largest product of these factors; 1: never lengthen"
    )
    compress: bool = Field(default=True, description="compress models if the descriptor allows it")
    checkpoint_steps: int = Field(default=1000, ge=1, description="steps between checkpoints")
    max_hours: Positive = Field(default=24.0, description="wall time limit per training, h")
    final: Final = Field(default=Final(), description="the final training")
    repulsion: Repulsion | None = Field(
        default=None, description="short-range table that replaces the model"
    )
    init: Init | None = Field(default=None, description="an existing model to start from")

    def batch(self, resolved: int | None = None) -> int:
        """Atoms of a batch; `resolved`: what `auto` means, by default on a CPU."""
        given = self.batch_atoms
        return (resolved or CPU_BATCH) if given == "auto" else given

    def pace(self, resolved: int | None, atoms: int, frames: int) -> float:
        """Factor on the learning rate and divisor of the number of steps with which `auto` reaches
        the errors of batches of `CPU_BATCH` atoms: the cube root of the ratio of the frames in a
        step. `atoms` per frame, `frames` in the dataset. 1 if the spec states a number, or a
        `batch_size` in `input`."""
        data = self.input.get("training", {}).get("training_data", {})
        if self.batch_atoms != "auto" or "batch_size" in data:
            return 1.0
        usual, now = (_frames(batch, atoms, frames) for batch in (CPU_BATCH, self.batch(resolved)))
        return float((now / usual) ** (1 / 3))

    def steps(self, resolved: int | None, atoms: int, frames: int, factor: float = 1.0) -> int:
        """Number of steps of a training with `epochs` passes over `frames` frames of `atoms` atoms,
        times `factor`, within the bounds of the spec; see `pace`."""
        usual = CPU_BATCH if self.batch_atoms == "auto" else self.batch_atoms
        passes = self.epochs * frames / math.ceil(usual / atoms)
        steps = min(self.max_steps, round(max(self.min_steps, passes) * factor))
        return max(1, round(steps / self.pace(resolved, atoms, frames)))

    @model_validator(mode="after")
    def _branch_of_a_multitask_model(self) -> Training:
        init = self.init
        if init is None or init.branch is None:
            return self
        if (init.how, self.backend) != ("finetune", "pytorch"):
            raise ValueError(
                "init.branch: only with init.how: finetune and backend: pytorch, not "
                f"{init.how} and {self.backend}"
            )
        return self

    @property
    def parameters(self) -> dict[str, int]:
        """Number of frame and atomic parameters that the models take."""
        model = self.input.get("model", {})
        fitting = model.get("fitting_net", {}) if isinstance(model, dict) else {}
        sizes = fitting if isinstance(fitting, dict) else {}
        return {name: sizes.get(f"numb_{name}", 0) for name in PARAMETERS}
