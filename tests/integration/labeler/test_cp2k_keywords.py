"""Keywords of CP2K, family by family and for real: what `validate` lets through gives a label, the
same as the machine-readable output of the program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpstream.services.labeler.codes.cp2k.cp2k import Cp2k
from dpstream.services.labeler.recipes import make_recipe, unlabelable
from dpstream.shared.spec import LabelSettings
from tests.support.programs.cp2k_keywords import (
    ACCEPTED,
    REFUSED,
    WITHOUT_VIRIAL,
    Family,
    machine_readable,
)
from tests.support.programs.labeling_programs import point, require, rule

soak = pytest.mark.soak


@soak
@pytest.mark.parametrize("family", ACCEPTED, ids=str)
def test_a_family_of_keywords_gives_the_label_of_the_files(family: Family, tmp_path: Path) -> None:
    require("cp2k")
    outcome = point("cp2k", family.settings, family.frame, tmp_path / "run", **family.labels)
    assert rule(family.frame, outcome) is None, outcome.messages
    expected, label = machine_readable(tmp_path / "run", family.frame), outcome.label()
    assert label.energy == pytest.approx(expected.energy, abs=1e-6)
    np.testing.assert_allclose(label.forces, expected.forces, atol=1e-6)
    np.testing.assert_allclose(label.virial, expected.virial, atol=1e-5)
    assert no_virial(family) is None


@soak
@pytest.mark.parametrize("family", WITHOUT_VIRIAL, ids=str)
def test_a_family_without_stress_has_energy_and_forces(family: Family, tmp_path: Path) -> None:
    require("cp2k")
    outcome = point("cp2k", family.settings, family.frame, tmp_path / "run", **family.labels)
    assert rule(family.frame, outcome) == "virial"
    assert no_virial(family) is not None


def no_virial(family: Family) -> str | None:
    return Cp2k().no_virial(make_recipe(labels_of(family)).settings)


def labels_of(family: Family) -> LabelSettings:
    return LabelSettings(code="cp2k", version="2023.1", settings=family.settings)


@pytest.mark.parametrize(("family", "words"), REFUSED, ids=str)
def test_what_can_give_no_label_is_refused_with_what_to_write_instead(
    family: Family, words: str
) -> None:
    assert words in str(unlabelable(labels_of(family)))
