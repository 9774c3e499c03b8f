"""Texts that an `input.json` may hold.

DeePMD-kit writes to the files that some keys name, and reads others. A campaign may set numbers
everywhere, and text only for keys whose values are known to be neither files nor code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpstream.services.trainer.training_input import CHECKPOINT, LCURVE, TABLE

# fmt: off
WORDS = frozenset({
    "a_sel", "activation_function", "auto_prob", "basis_type", "batch_size", "block_attn_res",
    "bridging_method", "compute_prec", "decay_type", "e_sel", "finetune_head", "full_attn_res",
    "layer_name", "loss_func", "metric", "mode", "model_branch_alias", "muon_mode",
    "neighbor_graph_method", "node_cartesian", "nsel", "output_prec", "precision",
    "property_name", "radial_so2_mode", "scale_by_worker", "scheme", "sel", "so2_attn_res",
    "so3_readout", "stat_file_mode", "tebd_input_mode", "three_body_sel", "type", "type_map",
    "update_residual_init", "update_style", "use_spin", "validation_metric", "weights",
})
# fmt: on
"""Keys of DeePMD-kit 3.2 whose text is a choice, a name of a type or a rule such as auto:1.2."""
WORD = re.compile(r"[\w.:;+ -]{0,100}")
FILES: Mapping[str, tuple[str, ...]] = {
    "disp_file": (LCURVE,),
    "save_ckpt": (CHECKPOINT,),
    "use_srtab": (TABLE,),
    # DeePMD-kit's defaults, in the training's folder.
    "profiling_file": ("timeline.json",),
    "tensorboard_log_dir": ("log",),
    "full_val_file": ("val.log",),
}
"""Keys that name a file, with the names that are allowed."""
COMMENT = "_"
"""First character of keys that DeePMD-kit removes."""


def check_words(document: Mapping[str, Any], systems: Sequence[str] = ()) -> None:
    """Raises ValueError, naming the key, if the complete `document` holds a text that may be a file
    or code. `systems`: the names of the training set's folders."""
    for path, text in _texts(document):
        key = path[-1]
        files = systems if key == "systems" else FILES.get(key, ())
        if text in files or (key in WORDS and WORD.fullmatch(text)):
            continue
        where = ".".join(path)
        if key in WORDS:
            raise ValueError(f"{where}: {text!r}: must be a plain word")
        if files and key != "systems":
            raise ValueError(f"{where}: {text!r}: must be {files[0]}, in the training's folder")
        raise ValueError(
            f"{where}: {text!r}: text is not allowed here, because it may name a file; allowed "
            f"for {', '.join(sorted(WORDS))}"
        )


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text with the keys that lead to it; items of a list have the key of the list."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not key.startswith(COMMENT):
                yield from _texts(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, path)
