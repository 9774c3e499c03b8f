"""How a committee is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dpstream.shared.atoms.frames import PARAMETERS
from dpstream.shared.spec.base import Positive, Section, Share

ZBL = "zbl"


class Repulsion(Section):
    """Where an atom's nearest neighbour is nearer than `inner` a table of pair energies replaces
    the model, between `inner` and `outer` both share (H. Wang et al., Appl. Phys. Lett. 114,
    244101 (2019); DeePMD-kit's use_srtab)."""

    table: str = Field(
        default=ZBL,
        description="zbl: the universal potential of Ziegler, Biersack and Littmark; or a file: "
        "r (Å), then the energies (eV) of all pairs of types, evenly spaced, down to zero",
    )
    inner: Positive = Field(description="Å; below: the table alone")
    outer: Positive = Field(description="Å; above: the model alone")
    smin_alpha: Positive = Field(
        default=0.1, description="softness of the nearest distance, DeePMD-kit's"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Repulsion:
        if self.inner >= self.outer:
            raise ValueError(f"inner ({self.inner:g}) must be below outer ({self.outer:g})")
        return self


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Init(Section):
    """A given model in whose weights every training begins that would else begin from scratch. Its
    architecture is taken with it: `training.input.model` counts for nothing."""

    model: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        min_length=1, description="file, or one file for each member"
    )
    how: Literal["init-model", "init-frz-model", "finetune"] = Field(
        description="init-model: from a checkpoint; init-frz-model: from a frozen model; "
        "finetune: likewise, with the energies of atoms adapted to the data (DeePMD-kit's words)"
    )


class Final(Section):
    """The one long cold training on all labels that ends a campaign."""

    steps_factor: Positive = Field(default=3.0, description="times the steps of a cold training")


class Training(Section):
    members: int = Field(default=4, ge=2, le=16, description="models in the committee")
    backend: Literal["tensorflow", "pytorch", "jax"] = Field(
        default="tensorflow", description="DeePMD-kit's"
    )
    input: dict[str, Any] = Field(
        default={},
        description="sections of a DeePMD-kit input.json, merged over the defaults key by key; "
        "type_map, seeds, systems and number of steps are dpstream's",
    )
    member_input: dict[int, dict[str, Any]] = Field(
        default={}, description="further overrides by member number, from 0"
    )
    batch_atoms: int = Field(
        default=32, ge=1, description="frames per batch = ceil(batch_atoms / n_atoms)"
    )
    epochs: Positive = Field(default=60.0, description="passes over the dataset")
    min_steps: int = Field(default=1000, ge=1, description="steps, however small the dataset")
    max_steps: int = Field(default=1_000_000, ge=1, description="steps, however large it is")
    decay: Literal["scaled", "fixed"] = Field(
        default="scaled",
        description="scaled: the learning rate reaches its end with the last step; fixed: "
        "decay_steps as given, like DP-GEN",
    )
    warm: Share = Field(
        default=0.0,
        description="warm starts train this fraction of a cold training's steps; 0: always cold",
    )
    warm_start_lr: Positive = Field(
        default=1e-4, description="learning rate a warm start begins at, or one from a given model"
    )
    warm_input: dict[str, Any] = Field(
        default={}, description="sections of input.json for warm starts, over all others"
    )
    cold_every: int = Field(default=4, ge=1, description="every so many versions start cold")
    limited_above: Positive = Field(
        default=0.5,
        description="training-limited when a member's force RMSE on its own training frames is "
        "above this fraction of the trust level `low`",
    )
    lengthen: Annotated[float, Field(ge=1)] = Field(
        default=2.0, description="factor on the steps after a training-limited verdict"
    )
    max_lengthen: Annotated[float, Field(ge=1)] = Field(
        default=4.0, description="largest such factor in all; 1 never lengthens"
    )
    compress: bool = Field(default=True, description="compress models where the descriptor allows")
    checkpoint_steps: int = Field(default=1000, ge=1, description="steps between checkpoints")
    max_hours: Positive = Field(default=24.0, description="longest wall time of one training")
    final: Final = Field(default=Final(), description="the training that ends the campaign")
    repulsion: Repulsion | None = Field(
        default=None, description="at short range, instead of the model"
    )
    init: Init | None = Field(default=None, description="a given model to begin from")

    @property
    def parameters(self) -> dict[str, int]:
        """How many frame and atomic parameters the models take."""
        model = self.input.get("model", {})
        fitting = model.get("fitting_net", {}) if isinstance(model, dict) else {}
        sizes = fitting if isinstance(fitting, dict) else {}
        return {name: sizes.get(f"numb_{name}", 0) for name in PARAMETERS}
