"""The input of a training names no files but dpstream's own."""

from __future__ import annotations

from typing import Any

import pytest

from dpstream.inputs.check_training import check_training
from dpstream.services.trainer.input_words import FILES, WORDS, check_words
from dpstream.services.trainer.training_input import TABLE, TrainingRun, build_input
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Training
from tests.support.campaigns.campaign_simulator import spec

RUN = TrainingRun(("H", "C"), ("train/C1H4",), steps=100, seed=1, member=0, warm=True)


def check(given: dict[str, Any], **training: Any) -> None:
    settings = Training.model_validate({"input": given, **training})
    check_words(build_input(settings, RUN), RUN.systems)


ESCAPES: list[dict[str, Any]] = [
    {"training": {"profiling": True, "profiling_file": "/tmp/x"}},
    {"training": {"tensorboard": True, "tensorboard_log_dir": "/tmp/x_tb"}},
    {"training": {"stat_file": "/tmp/x_stat"}},
    {"training": {"save_dir": "/tmp/x"}},
    {"training": {"training_data": {"rglob_patterns": ["/home/*"]}}},
    {"training": {"training_data": {"set_prefix": "/home/x"}}},
    {"training": {"validation": {"systems": ["/home/x"]}}},
    {"validating": {"full_val_file": "/tmp/x"}},
    {"validating": {"save_best_dir": "/tmp/x"}},
    {"model": {"use_srtab": "/home/x/secret"}},
    {"model": {"type": "frozen", "model_file": "/home/x/model.pb"}},
    {"model": {"type": "pairtab", "tab_file": "table"}},
    {"model": {"modifier": {"type": "dipole_charge", "model_name": "../dipole.pb"}}},
    {"model": {"compress": {"model_file": "x"}}},
    {"model": {"descriptor": {"type": "se_e2_a/../../x"}}},
    {"model": {"descriptor": {"type": "hybrid", "list": [{"type": "se_e2_a", "path": "x"}]}}},
    {"nvnmd": {"config_file": "config.npy"}},
    {"unknown": [["/tmp/x"]]},
]


@pytest.mark.parametrize("given", ESCAPES, ids=str)
def test_text_that_may_be_a_file_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"allowed|must be"):
        check(given)


@pytest.mark.parametrize("where", ["input", "member_input", "warm_input"])
def test_before_anything_starts_one_line_names_the_key(where: str) -> None:
    given: Any = {"training": {"stat_file": "/tmp/x"}}
    training = {where: {1: given} if where == "member_input" else given}
    with pytest.raises(SpecError, match=rf"training\.{where}") as caught:
        check_training(spec(training=training))
    assert "training.stat_file: '/tmp/x': text is not allowed here" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_in_the_trainings_folder_keep_their_names() -> None:
    check({"training": {key: FILES[key][0] for key in ("profiling_file", "tensorboard_log_dir")}})
    with pytest.raises(ValueError, match=r"profiling_file: 'x': must be timeline\.json"):
        check({"training": {"profiling_file": "x"}})


def test_what_is_a_word_or_a_number_is_free() -> None:
    check(
        {
            "_comment": "see /home/me/notes",
            "model": {
                "_about": {"source": "/home/me"},
                "descriptor": {
                    "type": "se_atten",
                    "sel": "auto:1.2",
                    "activation_function": "gelu",
                },
                "fitting_net": {"precision": "float32", "layer_name": ["a", None]},
            },
            "loss": {"type": "ener", "start_pref_e": 0.1, "loss_func": "mae"},
            "training": {
                "training_data": {"auto_prob": "prob_sys_size; 0:1:0.5", "batch_size": "mixed:32"},
                "mixed_precision": {"compute_prec": "float16", "output_prec": "float32"},
                "disp_file": "/dpstream/sets/this",
            },
        },
        repulsion={"inner": 0.5, "outer": 0.8},
    )


def test_the_model_section_of_a_checkpoint_is_checked_too() -> None:
    def checked(**model: Any) -> None:
        run = TrainingRun(("H",), ("train/x",), 100, 1, 0, model={"type_map": ["H"], **model})
        check_words(build_input(Training(), run), run.systems)

    checked(use_srtab=TABLE)
    with pytest.raises(ValueError, match=r"model\.use_srtab: '/etc/passwd': must be"):
        checked(use_srtab="/etc/passwd")


def test_every_word_is_a_key_of_deepmd_kit() -> None:
    """And every other text of its checker is refused."""
    argcheck = pytest.importorskip("deepmd.utils.argcheck")
    files = {key for key, kinds in _keys(argcheck.gen_args()) if _holds_text(kinds)}
    assert files - WORDS == {
        "config_file", "disp_file", "full_val_file", "map_file", "model_file", "model_name",
        "profiling_file", "rglob_patterns", "save_best_dir", "save_ckpt", "save_dir", "stat_file",
        "systems", "tab_file", "tensorboard_log_dir", "use_srtab", "weight_file",
    }  # fmt: skip


def _keys(arguments: Any) -> Any:
    for argument in arguments:
        yield argument.name, argument.dtype
        yield from _keys(argument.sub_fields.values())
        for variant in argument.sub_variants.values():
            yield from _keys(variant.choice_dict.values())


def _holds_text(kinds: Any) -> bool:
    return "str" in str(kinds) and "dict" not in str(kinds)
