"""`dpstream why`: the life of a frame, read off the ledger."""

from pathlib import Path

import pytest

from dpstream.services.coordinator.views.why import why
from dpstream.shared.errors import SpecError
from tests.support.campaigns import sample_ledger


def _text(tmp_path: Path, number: int) -> str:
    return "\n".join(
        why(sample_ledger.write_sample(tmp_path), sample_ledger.NAME, sample_ledger.KEYS[number])
    )


def test_an_initial_frame(tmp_path: Path) -> None:
    text = _text(tmp_path, sample_ledger.INITIAL)
    assert "submitted with the campaign" in text
    assert "label accepted, found in the store" in text
    assert "dataset version 1, first trained on by committee 1" in text


def test_a_chosen_frame_from_trajectory_to_training(tmp_path: Path) -> None:
    text = _text(tmp_path, sample_ledger.TRAINED)
    assert (
        f"found in trajectory {sample_ledger.TRAJECTORY} (methane 50 K) at 0.1 ps by committee 1"
        in text
    )
    assert "chosen for training in stage 1, under committee 1: random draw number 1" in text
    assert "label task label-2, attempt 1, taken by labeler-0" in text
    assert "dataset version 2, first trained on by the final model" in text


def test_the_lines_come_in_the_order_of_life(tmp_path: Path) -> None:
    text = _text(tmp_path, sample_ledger.TRAINED)
    steps = ["found in", "chosen for", "label task", "label accepted", "dataset version"]
    assert [text.index(step) for step in steps] == sorted(text.index(step) for step in steps)


def test_an_audit_frame_is_never_trained_on(tmp_path: Path) -> None:
    text = _text(tmp_path, sample_ledger.AUDITED)
    assert "chosen for the audit" in text
    assert "weight 12" in text
    assert "never trained on" in text
    assert "dataset version" not in text


def test_a_rejected_frame_says_rule_and_detail(tmp_path: Path) -> None:
    text = _text(tmp_path, sample_ledger.REJECTED)
    assert f"rejected by the rule scf: {sample_ledger.HOSTILE}" in text
    assert "in no dataset version" in text


def test_a_frame_that_was_passed_over(tmp_path: Path) -> None:
    text = _text(tmp_path, sample_ledger.PASSED_OVER)
    assert "uploaded as candidate; never chosen for a label" in text
    assert "deviation 0.12" in text
    assert (
        "not chosen: limit of its trajectory reached: 1; this frame: limit of its trajectory"
        in text
    )
    assert text.count("chose 2 for training, 1 for the audit") == 1


def test_a_frame_still_without_a_dataset(tmp_path: Path) -> None:
    store = sample_ledger.write_half(tmp_path)
    assert (
        why(store, sample_ledger.NAME, sample_ledger.KEYS[sample_ledger.TRAINED])[-1]
        == "in no dataset version yet"
    )


def test_the_beginning_of_a_key_is_enough(tmp_path: Path) -> None:
    store = sample_ledger.write_sample(tmp_path)
    key = sample_ledger.KEYS[sample_ledger.TRAINED]
    assert why(store, sample_ledger.NAME, key[:12]) == why(store, sample_ledger.NAME, key)


def test_an_unknown_key_names_near_ones(tmp_path: Path) -> None:
    store = sample_ledger.write_sample(tmp_path)
    key = sample_ledger.KEYS[sample_ledger.TRAINED]
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    with pytest.raises(SpecError, match=f"no such frame in told; similar: .*{key}"):
        why(store, sample_ledger.NAME, wrong)


def test_a_key_that_begins_several_frames(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="matches 4 frames of told: "):
        why(sample_ledger.write_sample(tmp_path), sample_ledger.NAME, "")
