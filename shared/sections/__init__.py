"""The sections of a campaign spec, each a frozen model with every key described.

Units: eV, Å, ps, K, bar.
"""

from shared.sections.ending import (
    Audit,
    Budget,
    Convergence,
    Property,
    Proposals,
    ReferenceMd,
    Streaming,
    Verification,
)
from shared.sections.exploration import (
    TRUST_TAGS,
    AnyTrust,
    AutoTrust,
    Material,
    Md,
    Selection,
    Stage,
    TrustLevels,
)
from shared.sections.labels import DATASET, Labels
from shared.sections.systems import Dimers, Initial, Perturb, Slabs, System, SystemLabel
from shared.sections.training import ZBL, Final, Init, Repulsion, Training

__all__ = [
    "DATASET",
    "TRUST_TAGS",
    "ZBL",
    "AnyTrust",
    "Audit",
    "AutoTrust",
    "Budget",
    "Convergence",
    "Dimers",
    "Final",
    "Init",
    "Initial",
    "Labels",
    "Material",
    "Md",
    "Perturb",
    "Property",
    "Proposals",
    "ReferenceMd",
    "Repulsion",
    "Selection",
    "Slabs",
    "Stage",
    "Streaming",
    "System",
    "SystemLabel",
    "Training",
    "TrustLevels",
    "Verification",
]
