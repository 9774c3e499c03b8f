"""What the plan and `dpstream bench train` make of measured speeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.build import molecule

from dpstream.inputs.gather import Gathered, gather
from dpstream.shared.spec import Spec
from dpstream.terminal import training_speed
from dpstream.terminal.training_speed import Speed, TrainingBenchmark
from tests.support.command_line import run_command


def spec(**changes: Any) -> Spec:
    document: dict[str, Any] = {
        "name": "small",
        "type_map": ["C", "H"],
        "systems": {"a": {"structures": ["a.xyz"]}},
        "initial": {"perturb": {"copies": 7}},
        "training": {"members": 4, "epochs": 70, "min_steps": 10},
        "stages": [{"name": "one", "systems": ["a"], "temperatures": [300]}],
        "selection": {"per_round": 14},
        "audit": {"per_round": 0},
        "budget": {"rounds": 3},
    }
    return Spec.model_validate({**document, **changes})


@pytest.fixture
def gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gathered:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    molecule("CH4").write(tmp_path / "a.xyz")
    return gather(spec(), tmp_path)


def speed(**changes: Any) -> Speed:
    fields = {"backend": "tensorflow", "device": "cpu", "slots": 2, "batch_atoms": 32}
    return Speed(**{**fields, "step": 0.01, "start": 3.0, "finish": 2.0, **changes})


def test_the_dataset_grows_by_the_limit_of_a_round(gathered: Gathered) -> None:
    first = len(gathered.initial)
    assert training_speed.dataset_sizes(spec(), gathered) == [first + 14 * n for n in range(4)]
    short = spec(budget={"rounds": 3, "labels": first + 20})
    assert training_speed.dataset_sizes(short, gathered) == [first + n for n in (0, 14, 20, 20)]


def test_members_wait_for_a_slot(gathered: Gathered) -> None:
    """70 epochs of 7 frames, all of them in one step, are 70 steps."""
    assert len(gathered.initial) == 7
    one_by_one, together = (
        training_speed.committee_seconds(spec(), gathered, speed(slots=slots)) for slots in (1, 4)
    )
    assert (one_by_one, together) == (pytest.approx(4 * 5.7), pytest.approx(5.7))


def test_the_fastest_way_is_that_of_the_whole_committee(gathered: Gathered) -> None:
    """Four slow trainings at once take less time than four fast ones in turn."""
    alone, four, torch = speed(slots=1), speed(slots=4, step=0.02), speed(backend="pytorch", step=9)
    measured = TrainingBenchmark(date="2026-01-01", machine="here", speeds=(alone, four, torch))
    assert measured.best(spec(), gathered) == four
    assert measured.best(spec(), gathered, "pytorch") == torch
    assert measured.best(spec(), gathered, "jax") is None


def test_the_plan_finds_what_was_measured_of_such_a_campaign(gathered: Gathered) -> None:
    asks = "not measured on this machine; dpstream bench train SPEC does it in a minute"
    assert training_speed.speed_words(spec(), gathered) == asks
    measured = TrainingBenchmark(date="2026-01-01", machine="here", speeds=(speed(),))
    training_speed.keep(spec(), gathered, measured)
    found = training_speed.speed_words(spec(name="other", seed=9), gathered)
    assert found == (
        "a training takes about 5.7 s on tensorflow, cpu, 9.9 s with 49 labels; 2 of 4 members at "
        "once, 4 versions take at most 1 min (measured on 2026-01-01)"
    )
    torch = spec(training={"backend": "pytorch"})
    assert training_speed.speed_words(torch, gathered) == asks
    nets = spec(training={"input": {"model": {"fitting_net": {"neuron": [8]}}}})
    assert training_speed.speed_words(nets, gathered) == asks


def test_a_damaged_file_is_as_none(gathered: Gathered) -> None:
    measured = TrainingBenchmark(date="2026-01-01", machine="here", speeds=(speed(),))
    training_speed.keep(spec(), gathered, measured).write_text("{")
    assert training_speed.kept(spec(), gathered) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "0 s"), (49.6, "50 s"), (90, "1.5 min"), (5000, "1.4 h")]
)
def test_times_have_two_digits(seconds: float, words: str) -> None:
    assert training_speed.duration(seconds) == words


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    document = spec().model_dump(mode="json") | {"training": {"batch_atoms": 0}}
    bad.write_text(yaml.safe_dump(document))
    status, out, err = run_command(monkeypatch, capsys, "bench", "train", str(bad))
    assert (status, out, err.count("\n")) == (2, "", 1)
    why = "training.batch_atoms: 0: must be auto or a whole number from 1"
    assert err == f"dpstream: {bad}: {why}\n"
