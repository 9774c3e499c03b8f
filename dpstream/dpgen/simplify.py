"""Converts the param file of DP-GEN's `simplify` to settings of `dpstream simplify`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field

from dpstream.dpgen import param_model
from dpstream.dpgen.fp_style import FpParam, Json
from dpstream.dpgen.key_table import KeyLine, account, mapped, refused, unused
from dpstream.dpgen.keys import DATA, LABELING, TRAINING
from dpstream.dpgen.labels import STYLE_KEYS, check_style, keys_of, read_labels, relabelled
from dpstream.dpgen.param import Places
from dpstream.dpgen.training import read_training
from dpstream.shared.spec.errors import validated

NO_DYNAMICS = "there are no dynamics"
ALL_PICKED = "all picked frames are labelled, as in DP-GEN"
TRUE_ERROR = (
    "the error on the frames left out is measured at the end; frames are picked by deviation"
)

SIMPLIFY = (
    mapped("pick_data", "the dataset"),
    mapped("labeled", "true: its own labels (labels.code: dataset); false: fp_style's code"),
    mapped("init_pick_number", "initial.pick"),
    mapped("iter_pick_number", "selection.per_round"),
    mapped("model_devi_f_trust_lo", "trust.low"),
    mapped("model_devi_f_trust_hi", "trust.high"),
    mapped("f_trust_lo", "as model_devi_f_trust_lo"),
    mapped("f_trust_hi", "as model_devi_f_trust_hi"),
    mapped("stop_iter", "budget.rounds"),
    *(
        refused(f"{prefix}e_trust_{end}", "energy deviations are not judged; remove it", 1e10)
        for prefix in ("model_devi_", "")
        for end in ("lo", "hi")
    ),
    *(refused(f"true_error_{x}_trust_{end}", TRUE_ERROR) for x in "fe" for end in ("lo", "hi")),
    *(unused(f"sys_{what}", NO_DYNAMICS) for what in ("configs", "configs_prefix", "format")),
    unused("shuffle_poscar", NO_DYNAMICS),
    unused("mass_map", NO_DYNAMICS),
    unused("fp_skip_bad_box", ALL_PICKED),
    unused("use_clusters", "frames are molecules if the dataset contains nopbc"),
    *(unused(f"fp_task_{most}", ALL_PICKED) for most in ("max", "min")),
    *(unused(f"fp_accurate_{kind}threshold", ALL_PICKED) for kind in ("", "soft_")),
)
OWN = {key.name for key in SIMPLIFY}
TABLE = (*(key for key in (*DATA, *TRAINING, *LABELING) if key.name not in OWN), *SIMPLIFY)


class SimplifyParam(param_model.ParamSection):
    pick_data: str | list[str] = Field(min_length=1)
    labeled: bool = False
    init_pick_number: int = Field(ge=1)
    iter_pick_number: int = Field(ge=1)
    low: float = Field(validation_alias=AliasChoices("model_devi_f_trust_lo", "f_trust_lo"), ge=0)
    high: float = Field(validation_alias=AliasChoices("model_devi_f_trust_hi", "f_trust_hi"), gt=0)
    stop_iter: int | None = Field(default=None, ge=1)
    init_data_prefix: str = ""
    init_data_sys: tuple[str, ...] = ()
    ratio_failed: float = Field(default=0.05, ge=0, le=1)


@dataclass(frozen=True)
class Simplified:
    """A converted param file. `settings`: sections of a spec; `sources`: the dataset; `lines`: what
    each key became; `differences`: what differs from DP-GEN."""

    settings: Json
    sources: tuple[str, ...]
    lines: tuple[KeyLine, ...]
    differences: tuple[str, ...]


def is_simplify(document: Mapping[Any, Any]) -> bool:
    return "pick_data" in document


def read_simplify(document: Mapping[str, Any], folder: Path, code: str | None) -> Simplified:
    """Convert the `document` of a file in `folder`. `code`: labeling code, with its defaults, that
    replaces fp_style. Raises `SpecError` with one line naming the key."""
    if not document.get("labeled") and code is None:
        check_style(document)
    style = {k: v for k, v in document.items() if k in STYLE_KEYS and k not in OWN}
    own = {key: value for key, value in document.items() if key not in style}
    lines = account(own, TABLE, elsewhere=keys_of(document))
    param, places = validated(SimplifyParam, dict(document)), Places(folder, folder)
    differences: list[str] = []
    if param.labeled:
        labels: Json = {}
        lines += [KeyLine(key, "", "unused", "the dataset has labels") for key in style]
    else:
        given = FpParam(document, document["type_map"], places.place)
        labels, more = relabelled(code, style) if code else read_labels(given, style)
        lines += more
    data = [places.place(path, param.init_data_prefix) for path in param.init_data_sys]
    settings = {
        "type_map": document["type_map"],
        "initial": {"data": data, "pick": param.init_pick_number},
        "training": read_training(_training(document), places.place, places.matching, differences),
        "trust": {"low": param.low, "high": param.high},
        "selection": {"per_round": param.iter_pick_number},
        "labels": labels,
        "convergence": {"max_rejected": param.ratio_failed},
        **({"budget": {"rounds": param.stop_iter}} if param.stop_iter else {}),
    }
    sources = [param.pick_data] if isinstance(param.pick_data, str) else param.pick_data
    dataset = tuple(map(places.place, sources))
    return Simplified(settings, dataset, tuple(lines), (*differences, *ALWAYS))


ALWAYS = (
    "every committee judges all frames left out; DP-GEN drops frames that were accurate once",
    "if there are failed frames but no candidates, the failed ones with the smallest deviation are "
    "labelled; DP-GEN stops",
    "at the end one final model is trained on all labels, in addition to the committee",
)


def _training(document: Mapping[str, Any]) -> param_model.RunParam:
    """The training keys, validated as those of `run`; placeholders replace the keys of `run` that
    `simplify` lacks."""
    absent = {
        "init_data_sys": ["-"],
        "sys_configs": [["-"]],
        "model_devi_jobs": [{"sys_idx": [0], "trj_freq": 1}],
        "model_devi_dt": 1.0,
        "model_devi_f_trust_lo": 0.0,
        "model_devi_f_trust_hi": 0.0,
        "fp_task_max": 1,
    }
    own = {key: value for key, value in document.items() if key not in OWN}
    return validated(param_model.RunParam, {**own, **absent})
