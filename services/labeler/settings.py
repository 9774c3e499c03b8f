"""Settings of the labeler."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, field_validator

from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.ase import SHIPPED
from dpstream.services.labeler.machine_settings import MachineSettings
from dpstream.services.labeler.recipes import installed_codes
from dpstream.shared.messages import Label
from dpstream.shared.settings import Separated, Slots, WorkerSettings
from dpstream.shared.spec.errors import did_you_mean
from dpstream.shared.values import Name


def _signing_key(given: SecretStr) -> SecretStr:
    if not re.fullmatch("[0-9a-f]{64}", given.get_secret_value()):
        raise ValueError("must be 64 hexadecimal digits, as `dpstream access` writes them")
    return given


class LabelerSettings(MachineSettings, WorkerSettings):  # --help lists the latter first
    labeler_codes: Annotated[tuple[str, ...], Separated] = Field(
        default_factory=installed_codes,
        min_length=1,
        description=f"comma-separated labeling codes that this worker runs ({' | '.join(CODES)}); "
        "from their queues in turn [all installed codes]",
    )
    labeler_slots: Slots = Field(
        default=1,
        description="tasks at once, each on as many cores as DPSTREAM_THREADS says; auto: by cores "
        "and memory",
    )
    labeler_class: Name | None = Field(
        default=None,
        max_length=30,
        description="serve only campaigns that request this class of worker (labels.worker_class "
        "in their spec), e.g. 32-cores; default: campaigns that request none",
    )
    labeler_calculators: Annotated[tuple[str, ...], Separated] = Field(
        default=tuple(sorted(SHIPPED)),
        description="comma-separated dotted names of the ASE calculators that campaigns may use, "
        "with arguments of their choice",
    )

    labeler_signing_key: Annotated[SecretStr, AfterValidator(_signing_key)] | None = Field(
        default=None,
        description="Ed25519 key with which this worker signs its labels, as `dpstream access` "
        "writes it (…_SIGNING_KEY); default: labels are not signed",
    )
    labeler_unsigned: Literal["reuse", "recompute"] = Field(
        default="reuse",
        description="what to do with labels without signature, where the store lists signers",
    )

    @field_validator("labeler_codes")
    @classmethod
    def _known(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        for code in codes:
            if code not in CODES:
                hint = did_you_mean(code, CODES)
                raise ValueError(
                    f"no labeling code {code!r}{hint or '; known: ' + ', '.join(CODES)}"
                )
        return tuple(dict.fromkeys(codes))

    @field_validator("labeler_calculators")
    @classmethod
    def _dotted(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            parts = name.split(".")
            if len(parts) < 2 or not all(part.isidentifier() for part in parts):
                raise ValueError(f"{name!r} must be a dotted name such as ase.calculators.emt.EMT")
        return names

    @property
    def queues(self) -> tuple[str, ...]:
        suffix = "" if self.labeler_class is None else f"-{self.labeler_class}"
        return tuple(Label.QUEUE.format(code + suffix) for code in self.labeler_codes)
