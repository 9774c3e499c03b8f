"""A campaign spec: all settings of a campaign, validated before anything starts.

Import from this package, not from its modules. Each module holds the sections of one topic;
`campaign` combines them and checks them against each other. Units: eV, Å, ps, K, bar. Every key
has a description; `dpstream schema` prints them all.
"""

from dpstream.shared.spec.base import Positive, Section, Share
from dpstream.shared.spec.campaign import Spec, expand_material, load_spec, with_engine_texts
from dpstream.shared.spec.convergence import (
    AuditSettings,
    Budget,
    Convergence,
    PropertyTolerance,
    Proposals,
    ReferenceMd,
    Streaming,
    Verification,
)
from dpstream.shared.spec.exploration import (
    AnyTrust,
    AutoTrust,
    Material,
    Md,
    Selection,
    Stage,
    TrustLevels,
)
from dpstream.shared.spec.labels import DATASET, LabelSettings
from dpstream.shared.spec.systems import (
    AnySet,
    Dimers,
    Initial,
    LabelledSet,
    Perturb,
    System,
    SystemLabel,
)
from dpstream.shared.spec.training import ZBL, Final, Init, Repulsion, Training

__all__ = [
    "DATASET",
    "ZBL",
    "AnySet",
    "AnyTrust",
    "AuditSettings",
    "AutoTrust",
    "Budget",
    "Convergence",
    "Dimers",
    "Final",
    "Init",
    "Initial",
    "LabelSettings",
    "LabelledSet",
    "Material",
    "Md",
    "Perturb",
    "Positive",
    "PropertyTolerance",
    "Proposals",
    "ReferenceMd",
    "Repulsion",
    "Section",
    "Selection",
    "Share",
    "Spec",
    "Stage",
    "Streaming",
    "System",
    "SystemLabel",
    "Training",
    "TrustLevels",
    "Verification",
    "expand_material",
    "load_spec",
    "with_engine_texts",
]
