"""The plan says what will be done and bought; the cross-check refuses data of another recipe."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from rich.console import Console, RenderableType

from dpstream.inputs.gather import Gathered, gather
from dpstream.new_campaign.folder import create
from dpstream.new_campaign.full import template
from dpstream.running.check_here import compare
from dpstream.running.cross_check import CHECKED
from dpstream.running.first_checks import FirstChecks
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.dynamics import Plan, run
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import Frame, FrameLabel, canonical, from_ase
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec, load_spec
from dpstream.shared.spec.convergence import ReferenceMd
from dpstream.terminal.plan import most_labels, plan

EXAMPLES = Path(__file__).parents[3] / "examples"


def as_text(parts: list[RenderableType]) -> str:
    console = Console(file=io.StringIO(), width=110, record=True)
    for part in parts:
        console.print(part)
    return console.export_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["methane", "methane-pbe", "water", "water-gromacs"])
def test_examples_load_and_print_their_plan(name: str) -> None:
    path = EXAMPLES / name / "campaign.yaml"
    spec = load_spec(path)
    assert spec.name == name
    gathered = gather(spec, path.parent)
    text = as_text(plan(spec, gathered, make_recipe(spec.labels)))
    for stage in spec.stages:
        assert stage.name in text
        assert all(f"{temperature:g}" in text for temperature in stage.temperatures)
    semi_empirical = spec.labels.code == "tblite"
    assert ("semi-empirical demo labels" in text) == semi_empirical
    most = most_labels(spec, gathered.least(spec))
    assert f"{most} = min(budget" in text
    assert most > spec.verification.reference_points


def spec(**sections: Any) -> Spec:
    document: dict[str, Any] = {
        "name": "test",
        "type_map": ["C", "H"],
        "systems": {"a": {"structures": ["a.xyz"]}},
        "initial": {"perturb": {"copies": 4}},
        "stages": [
            {"name": "one", "systems": ["a"], "temperatures": [300]},
            {"name": "two", "systems": ["a"], "temperatures": [600]},
        ],
        "selection": {"per_round": 10},
        "audit": {"per_round": 5},
        "budget": {"labels": 1000, "rounds": 3},
    }
    return Spec.model_validate({**document, **sections})


def test_most_labels_counts_every_round_of_every_stage_and_the_audit() -> None:
    assert most_labels(spec(), 4) == 4 + 3 * (10 + 5) * 2
    assert most_labels(spec(budget={"labels": 50, "rounds": 3}), 4) == 50


REFERENCE = {"system": "a", "trajectories": 2, "frames": 3, "spacing": 0.01, "equilibrate": 0.02}
POINTS = 2 * (1 + 20 + 3 * (10 + 1))


def test_reference_trajectories_count_in_the_budget() -> None:
    wanted = spec(verification={"reference_md": REFERENCE})
    assert wanted.verification.reference_points == POINTS
    assert most_labels(wanted, 4 + POINTS) == 4 + POINTS + 3 * (10 + 5) * 2
    found = replace(gathered(), systems={"a": [gathered().labelled[0][0]]}, compared=5)
    text = " ".join(as_text(plan(wanted, found, make_recipe(wanted.labels))).split())
    assert (
        f"{most_labels(wanted, POINTS)} = min(budget 1000, 0 initial + {POINTS} single points of 2 "
        "reference trajectories + 2 stages × 3 rounds × (10 + 5 audit))"
    ) in text
    assert "the labelers compute 5 of 20 imported labels again" in text
    assert "5 single points of up to 5 atoms, not counted in budget.labels" in text


def test_reference_dynamics_makes_as_many_single_points() -> None:
    start, made = gathered(1).labelled[0][0], []

    def point(frame: Frame) -> Outcome:
        made.append(frame)
        return Outcome.of_label(frame, FrameLabel(0.0, np.zeros((5, 3))))

    times = ReferenceMd.model_validate(REFERENCE).model_dump(exclude={"system", "trajectories"})
    assert len(list(run(start, point, Plan(seed=1, **times)))) == 3
    assert 2 * len(made) == POINTS


def test_a_campaign_that_begins_needs_a_budget_for_what_is_computed_in_any_case() -> None:
    data = gathered()
    checks = FirstChecks(Path("campaign.yaml"), True, False)
    wanted = spec(budget={"labels": POINTS}, verification={"reference_md": REFERENCE})
    assert checks.passed(wanted, data).compared == 5
    short = spec(budget={"labels": POINTS - 1}, verification={"reference_md": REFERENCE})
    with pytest.raises(SpecError) as refused:
        checks.passed(short, data)
    assert str(refused.value) == (
        f"campaign.yaml: budget.labels: {POINTS - 1} is less than the {POINTS} that are computed "
        f"in any case (0 initial frames to label + {POINTS} single points of "
        "verification.reference_md); raise it, or reduce these"
    )


def test_the_plan_says_from_what_labels_are_drawn() -> None:
    own = {
        "per_round": 10,
        "policy": "uniform",
        "pool_size": 8,
        "pool_share": 0.02,
        "clusters": {"radius": 5.0},
    }
    wanted = spec(selection=own, stages=[{"name": "s", "systems": ["a"], "temperatures": [1]}])
    found = replace(gathered(), systems={"a": [gathered().labelled[0][0]]})
    text = " ".join(as_text(plan(wanted, found, make_recipe(wanted.labels))).split())
    assert "clusters of 5 Å, uniform from the 8 or 2.0% largest deviations of each system" in text


def test_material_is_planned_as_its_stages(tmp_path: Path) -> None:
    wanted = spec(stages=[], material={"Tm": 900, "B": 100})
    assert most_labels(wanted, 4) == 4 + 3 * 15 * 4


def gathered(count: int = 20) -> Gathered:
    rng = np.random.default_rng(0)
    labelled = []
    for _ in range(count):
        atoms = molecule("CH4")
        atoms.positions += rng.normal(0, 0.05, (5, 3))
        frame = canonical(from_ase(atoms)).frame
        labelled.append((frame, FrameLabel(-20.0, rng.normal(0, 1, (5, 3)))))
    return Gathered({}, [], labelled, [], [])


def answers(data: Gathered, force: float = 0.0, energy: float = 0.0) -> Any:
    """A labeling code that is off by `force` eV/Å on one atom and `energy` eV per atom."""
    known = {frame.positions.tobytes(): label for frame, label in data.labelled}
    asked: list[Frame] = []

    def label_frames(frames: list[Frame]) -> list[FrameLabel | str]:
        asked.extend(frames)
        replies: list[FrameLabel | str] = []
        for frame in frames:
            label = known[frame.positions.tobytes()]
            forces = label.forces.copy()
            forces[2, 1] += force
            replies.append(FrameLabel(label.energy + 5 * energy, forces))
        return replies

    label_frames.asked = asked  # type: ignore[attr-defined]
    return label_frames


def test_cross_check_passes_data_of_the_recipe() -> None:
    data = gathered()
    code = answers(data, force=0.049, energy=0.01)
    compare(data, spec(), code)
    again = answers(data)
    compare(data, spec(), again)
    assert len(code.asked) == CHECKED
    assert [id(frame) for frame in code.asked] == [id(frame) for frame in again.asked]


def test_cross_check_refuses_other_forces() -> None:
    data = gathered()
    with pytest.raises(SpecError, match=r"of 5 .* up to 0\.051 eV/Å; allowed: 0\.05 \(half"):
        compare(data, spec(), answers(data, force=0.051))


def test_cross_check_uses_the_tightest_level_in_use() -> None:
    data = gathered()
    stages = [
        {"name": "one", "systems": ["a"], "temperatures": [300]},
        {"name": "two", "systems": ["a"], "temperatures": [9], "trust": {"low": 0.02, "high": 1}},
    ]
    with pytest.raises(SpecError, match=r"allowed: 0\.01 "):
        compare(data, spec(stages=stages), answers(data, force=0.02))
    # RMS force 1: automatic levels begin at low = 0.2.
    with pytest.raises(SpecError, match=r"allowed: 0\.10"):
        compare(data, spec(trust={"target": 0.1}), answers(data, force=0.2))
    compare(data, spec(trust={"target": 0.1}), answers(data, force=0.08))


def test_cross_check_refuses_another_energy_zero() -> None:
    data = gathered()
    with pytest.raises(SpecError, match=r"differ from .* by up to 3 eV per atom"):
        compare(data, spec(), answers(data, energy=3.0))


def test_cross_check_refuses_what_the_recipe_rejects() -> None:
    with pytest.raises(SpecError, match=r"no label for an imported frame .*: C1H4: min-dist"):
        compare(gathered(), spec(), lambda frames: ["min-distance"] * len(frames))


def test_cross_check_of_fewer_frames_or_none() -> None:
    data = gathered(2)
    code = answers(data)
    compare(data, spec(), code)
    assert len(code.asked) == 2
    compare(gathered(0), spec(), code)
    assert len(code.asked) == 2


# ------------------------------------------------------------------------------ dpstream new


def test_the_template_is_a_spec_with_every_default(tmp_path: Path) -> None:
    path = create("mine", tmp_path, template("mine"), {})
    molecule("CH4").write(path.parent / "structures" / "methane.xyz")
    loaded = load_spec(path)
    needed = {key: loaded.model_dump()[key] for key in ("name", "type_map", "systems", "stages")}
    for stage in needed["stages"]:
        del stage["md"]
    assert loaded == Spec.model_validate({**needed, "initial": {"perturb": {}}})
    assert len(gather(loaded, path.parent).initial) == 20


def test_the_template_names_every_key() -> None:
    text = template("mine")
    for section in (Spec, *(f.annotation for f in Spec.model_fields.values())):
        for key in getattr(section, "model_fields", {}):
            assert f"{key}:" in text, key


def test_new_refuses_bad_names_and_existing_folders(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'My One': use at most 63 lower-case"):
        create("My One", tmp_path, "", {})
    create("mine", tmp_path, template("mine"), {})
    with pytest.raises(SpecError, match="already exists"):
        create("mine", tmp_path, template("mine"), {})
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot be written"):
        create("mine", tmp_path / "file", "", {})


@pytest.mark.parametrize("here", [True, False])
def test_the_plan_says_who_checks_the_training_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    molecule("CH4").write(tmp_path / "a.xyz")
    monkeypatch.setattr("dpstream.terminal.plan.deepmd_is_here", lambda: here)
    text = as_text(plan(spec(), gather(spec(), tmp_path), make_recipe(spec().labels)))
    assert ("checked by the trainers: no DeePMD-kit here" in " ".join(text.split())) == (not here)
