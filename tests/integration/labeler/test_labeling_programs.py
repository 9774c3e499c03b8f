"""Labels by a custom program, a trained model and a stand-in for a licensed one, through the
labeler's own handler."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule

from dpstream.running.label_here import label_frames
from dpstream.services.labeler.acceptance import Outcome
from dpstream.services.labeler.codes import CODES
from dpstream.services.labeler.codes.base import FileCode
from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared.atoms.frames import Frame, FrameLabel, canonical, from_ase
from dpstream.shared.errors import Permanent
from dpstream.shared.spec import LabelSettings, Spec
from tests.support.programs.labeling_programs import CUSTOM, point_of

SCRIPT = Path(__file__).parents[2] / "support" / "programs" / "tblite_program.py"
BOXED = canonical(from_ase(molecule("H2O", cell=np.diag([8.5, 9.0, 9.5]), pbc=True))).frame
WATER = canonical(from_ase(molecule("H2O"))).frame


def labelled(labels: dict[str, Any], frames: Iterable[Frame]) -> list[FrameLabel | str]:
    spec = Spec.model_validate(
        {
            "name": "demo",
            "type_map": ["H", "O", "Al"],
            "systems": {"s": {"structures": ["s.xyz"]}},
            "initial": {"perturb": {}},
            "stages": [{"name": "one", "systems": ["s"], "temperatures": [300]}],
            "labels": labels,
        }
    )
    return list(label_frames(spec, make_recipe(spec.labels), {}, list(frames)))


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"{sys.executable} {SCRIPT} {{charge}} {{multiplicity}}"
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", f"xtb-script={command}")


@pytest.mark.usefixtures("program")
def test_a_custom_programs_label_is_that_of_the_library() -> None:
    tight = {"settings": {"accuracy": 0.1}, "charge": 1, "multiplicity": 2}
    (ours,) = labelled(tight, [BOXED])
    (theirs,) = labelled({**CUSTOM, "charge": 1, "multiplicity": 2}, [BOXED])
    assert isinstance(ours, FrameLabel), ours
    assert isinstance(theirs, FrameLabel), theirs
    assert theirs.energy == pytest.approx(ours.energy, abs=1e-5)
    np.testing.assert_allclose(theirs.forces, ours.forces, atol=1e-5)
    assert theirs.virial is not None
    assert ours.virial is not None
    np.testing.assert_allclose(theirs.virial, ours.virial, atol=1e-5)


@pytest.mark.usefixtures("program")
def test_dpdatas_formats_and_how_a_custom_program_fails() -> None:
    settings = {
        **CUSTOM["settings"],
        "input": {"format": "xyz", "file": "in/frame.xyz"},
        "output": {"format": "deepmd/npy", "file": "label"},
    }
    unconverged = {**settings, "files": {"options.json": '{"max_iterations": 2}'}}
    nothing = {**settings, "output": {"format": "deepmd/npy", "file": "no-such"}}
    garbled = {**settings, "output": {"format": "deepmd/npy", "file": "in"}}
    (good,) = labelled({**CUSTOM, "settings": settings}, [WATER])
    assert isinstance(good, FrameLabel), good
    assert good.virial is None
    found = [
        labelled({**CUSTOM, "settings": s}, [WATER])[0] for s in (unconverged, nothing, garbled)
    ]
    assert str(found[0]).startswith("not-converged")
    assert str(found[1]).startswith("one-energy")
    assert "wrote no no-such" in str(found[1])
    assert "cannot be read as deepmd/npy" in str(found[2])


def test_a_program_that_no_worker_knows_is_the_workers_fault() -> None:
    with pytest.raises(Permanent, match="no command for 'xtb-script' on this machine"):
        labelled(CUSTOM, [WATER])


def test_a_model_is_a_teacher(
    periodic_committee: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = periodic_committee[0]
    monkeypatch.setenv("DPSTREAM_LABELER_POTENTIALS", f"deepmd={model.parent}")
    al = bulk("Al", cubic=True) * (2, 1, 1)
    al.rattle(0.05, seed=3)
    frame = canonical(from_ase(al)).frame
    shift = np.zeros_like(frame.positions)
    shift[2, 1] = 1e-3
    moved = [
        canonical(Frame(frame.species, frame.positions + sign * shift, frame.cell)).frame
        for sign in (1, -1)
    ]
    labels = {"code": "deepmd", "settings": {"model": model.name}}
    at, plus, minus, water = labelled(labels, [frame, *moved, BOXED])
    assert isinstance(at, FrameLabel), at
    assert isinstance(plus, FrameLabel), plus
    assert isinstance(minus, FrameLabel), minus
    assert at.forces[2, 1] == pytest.approx((minus.energy - plus.energy) / 2e-3, abs=1e-4)
    assert at.virial is not None
    assert str(water).startswith("unsupported-element: the model supports Al")
    other = make_recipe(LabelSettings.model_validate(labels))
    assert other.version.partition("; model ")[2]


# ---------------------------------------------------------------------------- a licensed program


@pytest.mark.skipif("DPSTREAM_TEST_DATA" not in os.environ, reason="DPSTREAM_TEST_DATA is not set")
def test_a_worker_with_another_version_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No VASP runs here: the command leaves the OUTCAR that another machine's VASP wrote."""
    outcar = Path(os.environ["DPSTREAM_TEST_DATA"]) / "outputs/vasp/OUTCAR.Ge.vdw"
    (tmp_path / "Ge").write_text("  PAW_PBE Ge 05Jan2001\n  ZVAL   =    4.000\n")
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", f"vasp=cp {outcar} OUTCAR")
    monkeypatch.setenv("DPSTREAM_LABELER_POTENTIALS", f"vasp={tmp_path}")
    settings = {"incar": "KSPACING = 0.3\n", "potentials": {"Ge": "Ge"}}
    code, frame = CODES["vasp"], from_ase(bulk("Ge", cubic=True))
    assert isinstance(code, FileCode)

    def run(version: str, folder: str) -> str | None:
        recipe = make_recipe(LabelSettings(code="vasp", settings=settings, version=version))
        return point_of(recipe, {}, frame, tmp_path / folder).program

    assert str(run("5.4", "a")).startswith("5.4.4")
    with pytest.raises(Permanent, match=r"is 5\.4\.4\S* PAW_PBE Ge 05Jan2001, the campaign's is 6"):
        run("6.3", "b")


@pytest.mark.skipif("DPSTREAM_TEST_DATA" not in os.environ, reason="DPSTREAM_TEST_DATA is not set")
def test_what_did_not_converge_is_tried_again_as_the_campaign_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command leaves a converged OUTCAR only where the INCAR begins with ALGO = All."""
    recorded = Path(os.environ["DPSTREAM_TEST_DATA"]) / "outputs/vasp"
    script = tmp_path / "vasp.sh"
    script.write_text(
        "#!/bin/sh\nhead -n 1 INCAR | grep -q 'ALGO = All' && good=Ge.vdw || good=ch4.1step\n"
        f"cp {recorded}/OUTCAR.$good OUTCAR\n"
    )
    script.chmod(0o755)
    (tmp_path / "Ge").write_text("  PAW_PBE Ge 05Jan2001\n  ZVAL   =    4.000\n")
    monkeypatch.setenv("DPSTREAM_LABELER_COMMANDS", f"vasp={script}")
    monkeypatch.setenv("DPSTREAM_LABELER_POTENTIALS", f"vasp={tmp_path}")
    code, frame = CODES["vasp"], from_ase(bulk("Ge", cubic=True))
    assert isinstance(code, FileCode)

    def run(folder: str, *retries: dict[str, Any]) -> Outcome:
        settings = {"incar": "KSPACING = 0.3\n", "potentials": {"Ge": "Ge"}, "retries": retries}
        recipe = make_recipe(LabelSettings(code="vasp", settings=settings))
        return point_of(recipe, {}, frame, tmp_path / folder)

    assert run("never").unconverged
    assert run("once", {"ALGO": "Normal"}).unconverged
    assert not run("twice", {"ALGO": "Normal"}, {"ALGO": "All", "NELM": 300}).unconverged
    incar = (tmp_path / "twice-try-2/INCAR").read_text()
    assert incar == "ALGO = All\nNELM = 300\nKSPACING = 0.3\n"
