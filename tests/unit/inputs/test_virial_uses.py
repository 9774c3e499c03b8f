"""Labels of periodic frames need a virial only where the campaign uses it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk
from rich.console import Console

from dpstream.inputs.gather import gather
from dpstream.services.labeler.acceptance import AcceptanceLimits
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Spec
from dpstream.shared.spec.virial import needs_virial, uses_of_virial
from dpstream.terminal.plan import plan

NVT = {"name": "one", "systems": ["a"], "temperatures": [300]}
NPT = {**NVT, "pressures": [1.0], "md": {"ensemble": "npt"}}
LOSS = {"loss": {"start_pref_v": 0.02, "limit_pref_v": 1}}
LEVELS = {"low": 0.1, "high": 0.3, "low_v": 0.01, "high_v": 0.02}
ELASTIC = {"property": "elastic", "system": "a", "tolerance": 0.1}
STRESSLESS = {
    "code": "vasp",
    "version": "6.3",
    "settings": {
        "incar": "KSPACING = 0.3\nISIF = 0",
        "potentials": {"Cu": "Cu"},
        "sha256": {"Cu": "0" * 16},
    },
}


def spec(**sections: Any) -> Spec:
    document: dict[str, Any] = {
        "name": "test",
        "type_map": ["Cu"],
        "systems": {"a": {"structures": ["a.extxyz"]}},
        "initial": {"perturb": {"copies": 1}},
        "stages": [NVT],
    }
    return Spec.model_validate({**document, **sections})


@pytest.mark.parametrize(
    ("sections", "uses"),
    [
        ({}, []),
        ({"training": {"input": LOSS}}, ["training.input.loss.start_pref_v"]),
        ({"training": {"member_input": {1: LOSS}}}, ["training.member_input.1.loss.start_pref_v"]),
        ({"training": {"warm_input": LOSS}}, ["training.warm_input.loss.start_pref_v"]),
        ({"training": {"input": {"loss": {"start_pref_v": 0, "limit_pref_v": 0.0}}}}, []),
        ({"stages": [NVT, {**NPT, "name": "two"}]}, ["stages.1.md.ensemble"]),
        ({"trust": LEVELS}, ["trust.low_v"]),
        ({"stages": [{**NVT, "trust": LEVELS}]}, ["stages.0.trust.low_v"]),
        (
            {"mode": "lockstep", "stages": [{**NVT, "system_trust": {"a": LEVELS}}]},
            ["stages.0.trust.low_v"],
        ),
        ({"verification": {"properties": [ELASTIC]}}, ["verification.properties.0"]),
        ({"stages": (), "material": {"Tm": 1300, "B": 140}}, ["material"]),
    ],
)
def test_what_uses_the_virial(sections: dict[str, Any], uses: list[str]) -> None:
    campaign = spec(**sections)
    assert uses_of_virial(campaign) == uses
    assert needs_virial(campaign) == bool(uses)
    assert AcceptanceLimits.of(campaign.labels, campaign).virial == bool(uses)


def test_the_spec_may_state_it_and_outside_campaigns_it_is_needed() -> None:
    stated = spec(labels={"virial": True})
    assert AcceptanceLimits.of(stated.labels, stated).virial
    assert AcceptanceLimits.of(spec().labels).virial
    assert not AcceptanceLimits.of(spec(labels={"virial": False}).labels).virial
    assert not AcceptanceLimits.of(spec(labels={"code": "dataset"}).labels).virial


def test_whether_it_is_needed_is_no_part_of_the_recipe() -> None:
    digests = {make_recipe(spec(labels={"virial": v}).labels).digest for v in (None, True, False)}
    assert len(digests) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (bulk("Cu", cubic=True) * (3, 3, 3)).write(tmp_path / "a.extxyz")
    return tmp_path


def shown(campaign: Spec, folder: Path) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    for part in plan(campaign, gather(campaign, folder), make_recipe(campaign.labels)):
        console.print(part)
    return " ".join(console.export_text().split())


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"stages": [NPT], "training": {"input": LOSS}}, "but training.input.loss.start_pref_v"),
        ({"labels": {**STRESSLESS, "virial": True}}, "but labels.virial needs it"),
    ],
)
def test_labels_without_a_virial_that_is_needed_are_refused(
    folder: Path, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError) as raised:
        gather(spec(**{"labels": STRESSLESS, **sections}), folder)
    assert words in str(raised.value)
    assert "labels.settings.incar: ISIF = 0; give ISIF = 2" in str(raised.value)


def test_a_statement_that_the_campaign_contradicts_is_refused(folder: Path) -> None:
    campaign = spec(labels={"virial": False}, training={"input": LOSS})
    with pytest.raises(SpecError, match=r"labels\.virial: false, but training\.input\.loss"):
        gather(campaign, folder)


@pytest.mark.slow
def test_the_plan_says_whether_labels_have_a_virial(folder: Path) -> None:
    assert "virial required of every label, by stages.0.md.ensemble" in shown(
        spec(stages=[NPT], training={"input": {"loss": {"start_pref_v": 0.0}}}), folder
    )
    assert "virial not used, so that labels of periodic frames may have none" in shown(
        spec(), folder
    )
    none = "may have none; these labels have none (incar: ISIF = 0; give ISIF = 2)"
    assert none in shown(spec(labels=STRESSLESS), folder)
