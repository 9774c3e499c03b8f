"""Every class of bad spec is one line that names file, key, value and remedy."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.shared.errors import SpecError
from dpstream.shared.spec import AutoTrust, Section, Spec, TrustLevels, expand_material, load_spec

GOOD: dict[str, Any] = {
    "name": "al",
    "type_map": ["Al"],
    "systems": {"fcc": {"structures": ["al.POSCAR"]}},
    "initial": {"perturb": {"copies": 2}},
    "stages": [{"name": "warm", "systems": ["fcc"], "temperatures": [300]}],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write(document: Any) -> Path:
        path = tmp_path / "campaign.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return path

    return write


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the dotted key `path` set."""
    document = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    inner: Any = document
    for key in parents:
        inner = inner[int(key)] if isinstance(inner, list) else inner.setdefault(key, {})
    inner[int(last) if isinstance(inner, list) else last] = value
    return document


def problem(path: Path) -> str:
    """The error of a bad spec, without the file it must begin with; always one line."""
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_the_good_spec_loads_and_survives_json(write: Callable[[Any], Path]) -> None:
    spec = load_spec(write(GOOD))
    assert spec.name == "al"
    assert Spec.model_validate_json(spec.model_dump_json()) == spec
    assert Spec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_json_is_read_too(tmp_path: Path, write: Callable[[Any], Path]) -> None:
    path = tmp_path / "campaign.json"
    path.write_text(json.dumps(GOOD))
    assert load_spec(path) == load_spec(write(GOOD))


UNKNOWN = [
    ("nam", "name"),
    ("systems.fcc.structure", "structures"),
    ("initial.dat", "data"),
    ("initial.perturb.copys", "copies"),
    ("training.member", "members"),
    ("training.final.step_factor", "steps_factor"),
    ("md.timstep", "timestep"),
    ("stages.0.temperature", "temperatures"),
    ("stages.0.md.timstep", "timestep"),
    ("trust.hihg", "high"),
    ("selection.polcy", "policy"),
    ("labels.cod", "code"),
    ("audit.reservoire", "reservoir"),
    ("convergence.max_fail", "max_failed"),
    ("budget.label", "labels"),
    ("streaming.retrain", "retrain_after"),
    ("verification.reference_md.temprature", "temperature"),
]


@pytest.mark.parametrize(("key", "meant"), UNKNOWN)
def test_unknown_key_at_any_depth(write: Callable[[Any], Path], key: str, meant: str) -> None:
    assert problem(write(changed(key, 1))) == f"{key}: unknown key; did you mean {meant!r}?"


def test_unknown_key_like_none_lists_those_allowed(write: Callable[[Any], Path]) -> None:
    text = problem(write(changed("budget.xyzzy", 1)))
    assert text == "budget.xyzzy: unknown key; allowed: labels, rounds"


def test_misspelt_required_key_is_called_unknown_not_missing(write: Callable[[Any], Path]) -> None:
    document = copy.deepcopy(GOOD)
    document["type_mapp"] = document.pop("type_map")
    assert problem(write(document)) == "type_mapp: unknown key; did you mean 'type_map'?"


WRONG = [
    ("md.timestep", "fast", "md.timestep: 'fast': must be a valid number"),
    ("stages.0.md.timestep", "fast", "stages.0.md.timestep: 'fast': must be a valid number"),
    ("md.timestep", -1, "md.timestep: -1: must be greater than 0"),
    ("md.timestep", float("nan"), "md.timestep: nan: must be a finite number"),
    ("md.tau_t", float("inf"), "md.tau_t: inf: must be a finite number"),
    ("md", 3, "md: 3: must be a mapping"),
    ("stages.0.md", 3, "stages.0.md: 3: must be a mapping"),
    ("stages.0", "warm", "stages.0: 'warm': must be a mapping"),
    ("md.ensemble", "npq", "md.ensemble: 'npq': must be 'nve', 'nvt'"),
    ("type_map", "Al", "type_map: 'Al': must be a list"),
    ("type_map", [], "type_map: []: must not be empty"),
    ("type_map", ["Al", "Alu"], "type_map: 'Alu' is not a chemical symbol; did you mean"),
    ("type_map", ["Al", "Al"], "type_map: 'Al' is listed twice"),
    ("name", "My Campaign", "name: 'My Campaign': use at most 63 lower-case letters"),
    (
        "systems",
        {"Fcc": {"structures": ["x"]}},
        "systems.Fcc: 'Fcc': use at most 63 lower-case letters",
    ),
    ("stages", [], "stages: give exactly one of `stages` and `material`"),
    ("material", {"Tm": 900, "B": 76}, "stages: give exactly one of `stages` and `material`"),
    ("stages.0.systems", ["bcc"], "stages.0.systems: 'bcc' is not in systems (fcc)"),
    ("stages.0.temperatures", [], "stages.0.temperatures: []: must not be empty"),
    ("stages.0.pressures", [1.0], "stages.0.pressures: requires an npt ensemble"),
    ("stages.0.md.ensemble", "npt", "stages.0.pressures: ensemble npt requires at least one"),
    ("stages.0.md.steps", 5, "stages.0.md.steps: 5 is less than every (10)"),
    ("initial", {}, "initial: give at least one of `data`, `perturb` and `pick`"),
    ("selection.per_round", 0, "selection.per_round: 0: must be greater than or equal to 1"),
    ("selection.min_distance", {"Al-Cu": 2.0}, "selection.min_distance: 'Al-Cu' is not a pair"),
    ("md.masses", {"Cu": 63.5}, "md.masses: 'Cu' is not in type_map (Al)"),
    ("training.member_input", {7: {}}, "training.member_input: 7 is not a member (0 to 3)"),
    (
        "verification.reference_md",
        {"system": "bcc"},
        "verification.reference_md.system: 'bcc' is not in systems",
    ),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG)
def test_wrong_value(write: Callable[[Any], Path], key: str, value: Any, expected: str) -> None:
    assert problem(write(changed(key, value))).startswith(expected)


@pytest.mark.parametrize("key", ["name", "type_map", "systems", "initial"])
def test_missing_key(write: Callable[[Any], Path], key: str) -> None:
    document = {k: v for k, v in GOOD.items() if k != key}
    assert problem(write(document)) == f"{key}: missing"


def test_missing_key_inside_a_section(write: Callable[[Any], Path]) -> None:
    document = copy.deepcopy(GOOD)
    del document["stages"][0]["temperatures"]
    assert problem(write(document)) == "stages.0.temperatures: missing"


BAD_TRUST = [
    ({"low": 0.3, "high": 0.1}, "low (0.3) must be below high (0.1)"),
    ({"low": 0.3, "high": 0.3}, "low (0.3) must be below high (0.3)"),
    ({"low": 0.1, "high": 0.3, "low_v": 0.1}, "give both low_v and high_v, or neither"),
    ({"low": 0.1, "high": 0.3, "low_v": 0.2, "high_v": 0.1}, "low_v (0.2) must be below high_v"),
]


@pytest.mark.parametrize("where", ["trust", "stages.0.trust"])
@pytest.mark.parametrize(("trust", "expected"), BAD_TRUST)
def test_reversed_trust_levels(
    write: Callable[[Any], Path], where: str, trust: Any, expected: str
) -> None:
    assert problem(write(changed(where, trust))).startswith(f"{where}: {expected}")


def test_trust_takes_two_forms(write: Callable[[Any], Path]) -> None:
    assert isinstance(load_spec(write(changed("trust", {"target": 0.1}))).trust, AutoTrust)
    levels = load_spec(write(changed("trust", {"low": 0.1, "high": 0.2}))).trust
    assert isinstance(levels, TrustLevels)


@pytest.mark.parametrize("value", ["auto", {"low": 0.1, "high": 0.3, "target": 0.1}])
def test_trust_that_is_neither_form(write: Callable[[Any], Path], value: Any) -> None:
    text = problem(write(changed("trust", value)))
    assert text.endswith("give either fixed levels {low, high, …} or {target, min_pairs}")


def test_problems_of_trust_are_those_of_the_form_meant(write: Callable[[Any], Path]) -> None:
    assert problem(write(changed("trust", {"low": 0.1}))) == "trust.high: missing"
    text = problem(write(changed("trust", {"target": 0.1, "min_pair": 9})))
    assert text == "trust.min_pair: unknown key; did you mean 'min_pairs'?"


def test_yaml_syntax_error_names_the_line(write: Callable[[Any], Path]) -> None:
    assert problem(write("name: al\nsystems: [a, b\nseed: 1\n")).startswith(
        "not valid YAML: line 3"
    )


def test_json_syntax_error_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "campaign.json"
    path.write_text('{"name": "al",\n "seed": }')
    assert "not valid JSON" in problem(path)
    assert "line 2" in problem(path)


def test_duplicate_keys_are_refused(write: Callable[[Any], Path], tmp_path: Path) -> None:
    text = problem(write("name: al\nmd:\n  steps: 10\n  steps: 20\n"))
    assert text == "not valid YAML: line 4, column 3: key 'steps' is given twice"
    path = tmp_path / "twice.json"
    path.write_text('{"name": "a", "name": "b"}')
    assert problem(path) == "not valid JSON: key 'name' is given twice"


def test_yaml_merge_keys_still_work(write: Callable[[Any], Path]) -> None:
    text = yaml.safe_dump({k: v for k, v in GOOD.items() if k != "stages"}) + (
        "stages:\n"
        "  - &first {name: a, systems: [fcc], temperatures: [300]}\n"
        "  - {<<: *first, name: b}\n"
    )
    assert [stage.name for stage in load_spec(write(text)).stages] == ["a", "b"]


def test_exponents_are_numbers_everywhere(write: Callable[[Any], Path]) -> None:
    """Plain YAML 1.1 reads 1e-3 as a string, which DeePMD-kit would be given."""
    text = yaml.safe_dump(GOOD) + "training: {input: {learning_rate: {start_lr: 1e-3}}}\n"
    assert load_spec(write(text)).training.input["learning_rate"]["start_lr"] == 1e-3


@pytest.mark.parametrize("content", ["", "# nothing yet\n"])
def test_empty_file(write: Callable[[Any], Path], content: str) -> None:
    assert problem(write(content)).startswith("the file is empty; `dpstream new`")


@pytest.mark.parametrize("content", ["- a\n- b\n", "just text\n"])
def test_a_file_of_something_else(write: Callable[[Any], Path], content: str) -> None:
    assert problem(write(content)).startswith("must be a mapping of keys to values")


def test_no_file_a_folder_and_no_text(tmp_path: Path) -> None:
    assert problem(tmp_path / "none.yaml") == "cannot be read: No such file or directory"
    assert problem(tmp_path) == "cannot be read: Is a directory"
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é".encode("latin-1"))
    assert problem(path).startswith("not a UTF-8 text file")


def test_stages_inherit_the_campaigns_md(write: Callable[[Any], Path]) -> None:
    document = changed("md", {"timestep": 0.002, "steps": 500})
    document["stages"][0]["md"] = {"steps": 700}
    md = load_spec(write(document)).stages[0].md
    assert (md.timestep, md.steps, md.every) == (0.002, 700, 10)


def material(solids: bool = True) -> Spec:
    document = {k: v for k, v in GOOD.items() if k != "stages"}
    plan = {"Tm": 900.0, "B": 100.0, "temperatures_per_group": 2}
    return expand_material(Spec.model_validate({**document, "material": plan}), solids)


def test_material_makes_the_guides_four_groups() -> None:
    stages = material().stages
    assert [stage.temperatures for stage in stages] == [
        (225.0, 450.0),
        (675.0, 900.0),
        (1125.0, 1350.0),
        (1575.0, 1800.0),
    ]
    assert {stage.md.ensemble for stage in stages} == {"npt-iso"}
    assert material().material is None


def test_material_pressures_are_bar_with_tension_for_solids_only() -> None:
    pressures = [stage.pressures for stage in material().stages]
    liquid = (0.0, 30_000.0, 60_000.0, 90_000.0)
    solid = (-10_000.0, *liquid)
    assert pressures == [solid, solid, liquid, liquid]
    assert all(stage.pressures == liquid for stage in material(solids=False).stages)


def test_expanding_again_changes_nothing() -> None:
    assert expand_material(material()) == material()


def sections(model: type[Section] = Spec) -> list[type[Section]]:  # type: ignore[assignment]
    found = [Spec, *Section.__subclasses__()]
    return [s for s in dict.fromkeys(found) if s.__module__.startswith("dpstream.shared.")]


@pytest.mark.parametrize("section", sections(), ids=lambda s: s.__name__)
def test_numbers_and_choices_are_described(section: type[Section]) -> None:
    """`dpstream schema` and `dpstream new` print what these say. A key that only repeats its name
    (steps, temperature in K…) still carries a unit or a bound."""
    bare = [
        name
        for name, field in section.model_fields.items()
        if field.description is None and not field.metadata and name != "test"
    ]
    assert bare == []
