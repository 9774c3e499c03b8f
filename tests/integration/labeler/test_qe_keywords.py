"""Keywords of pw.x, family by family and for real: what `validate` lets through gives a label, the
same as the machine-readable output of the program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpstream.services.labeler.acceptance import AcceptanceLimits, check_before
from dpstream.services.labeler.codes.qe.qe import Qe
from dpstream.services.labeler.recipes import make_recipe, read_files, unlabelable
from dpstream.shared.spec import LabelSettings
from tests.support.programs.labeling_programs import point, require, rule
from tests.support.programs.qe_keywords import (
    ACCEPTED,
    REFUSED,
    WITHOUT_VIRIAL,
    Family,
    machine_readable,
)

soak = pytest.mark.soak


def refusal(family: Family) -> str:
    """What `validate` says; empty if it refuses nothing."""
    labels = LabelSettings(code="qe", settings=family.settings, charge=family.charge)
    labels, _ = read_files(labels, Path())
    recipe, problem = make_recipe(labels), unlabelable(labels)
    if problem is not None:
        return problem
    broken = check_before(family.frame, recipe, Qe(), AcceptanceLimits.of(labels))
    return "" if broken is None else broken.detail


@soak
@pytest.mark.parametrize("family", ACCEPTED, ids=str)
def test_a_family_of_keywords_gives_the_label_of_the_xml_file(
    family: Family, tmp_path: Path
) -> None:
    require("qe")
    assert refusal(family) == ""
    outcome = point("qe", family.settings, family.frame, tmp_path / "run", charge=family.charge)
    assert rule(family.frame, outcome) is None, outcome.messages
    assert outcome.positions is not None
    expected, label = machine_readable(tmp_path / "run", family.frame), outcome.label()
    assert label.energy == pytest.approx(expected.energy, abs=2e-7)
    np.testing.assert_allclose(label.forces, expected.forces, atol=5e-7)
    np.testing.assert_allclose(label.virial, expected.virial, atol=2e-4)
    assert Qe().no_virial(make_recipe_settings(family)) is None


@soak
@pytest.mark.parametrize("family", WITHOUT_VIRIAL, ids=str)
def test_a_family_without_stress_has_energy_and_forces(family: Family, tmp_path: Path) -> None:
    require("qe")
    outcome = point("qe", family.settings, family.frame, tmp_path / "run")
    assert rule(family.frame, outcome) == "virial"
    expected, label = machine_readable(tmp_path / "run", family.frame), outcome.label()
    assert label.virial is None
    assert label.energy == pytest.approx(expected.energy, abs=2e-7)
    np.testing.assert_allclose(label.forces, expected.forces, atol=5e-7)
    assert Qe().no_virial(make_recipe_settings(family)) is not None


def make_recipe_settings(family: Family) -> dict[str, object]:
    labels, _ = read_files(LabelSettings(code="qe", settings=family.settings), Path())
    return make_recipe(labels).settings


@pytest.mark.parametrize(("family", "words"), REFUSED, ids=str)
def test_what_can_give_no_label_is_refused_with_what_to_write_instead(
    family: Family, words: str
) -> None:
    require("qe")
    assert words in refusal(family)
