"""`dpstream run` on DP-GEN's methane, labelled by GFN2-xTB; out in DP-GEN's layout, and on again
from there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.messages import Audit, CandidatesSelected, Explore, Message, StageEnded
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.small_campaign import labelled, state_of
from tests.support.command_line import dpstream
from tests.support.dpgen import dpgen_methane

DATA = os.environ.get("DPSTREAM_TEST_DATA")
REAL = Path("dpgen/examples/run/dp2.x-lammps-vasp/CH4/param_CH4_deepmd-kit-2.x.json")
SMALL = (
    *("numb_models", "init_data_prefix", "init_data_sys", "sys_configs_prefix", "sys_configs"),
    *("default_training_param", "model_devi_dt", "fp_task_max", "fp_task_min"),
    *("model_devi_f_trust_lo", "model_devi_f_trust_hi", "model_devi_jobs"),
)


def document() -> dict[str, Any]:
    """DP-GEN's own file where it is at hand, with paths and sizes of ours."""
    ours = dpgen_methane.param()
    if DATA is None:
        return ours
    theirs: dict[str, Any] = json.loads((Path(DATA) / REAL).read_text())
    return {**theirs, **{key: ours[key] for key in SMALL}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a campaign that was run from param.json and machine.json."""
    folder = tmp_path_factory.mktemp("methane")
    dpgen_methane.write_structures(folder / "data")
    dpgen_methane.write_labels(folder / "data" / "init", 8)
    param = dpgen_methane.write_files(folder, document())
    crew = ("--workers", "trainer=1,explorer=1,labeler=1")
    words = ("run", param, folder / "machine.json", "--code", "tblite", "--name", "small", *crew)
    said = dpstream(*words, "--root", folder / "root", status=1)
    assert "stage job-000 was explored once" in " ".join(said.split())
    return folder / "root"


def ledger(root: Path) -> list[Message]:
    return list(read_messages(FolderStore(root), "small"))


@pytest.mark.soak
def test_each_job_is_done_once_in_order_without_audit(root: Path) -> None:
    heard = ledger(root)
    assert [m.stage for m in heard if isinstance(m, StageEnded)] == [0, 1]
    explored = [(m.stage, m.condition.system) for m in heard if isinstance(m, Explore)]
    assert explored == [(0, "sys-000")] * 2 + [(1, "sys-001")] * 2, "from both structures"
    assert not any(isinstance(m, Audit) for m in heard)
    chosen = [len(m.labels) for m in heard if isinstance(m, CandidatesSelected)]
    assert chosen == [3, 3], "fp_task_max"
    assert Counter(labelled(state_of(root)).values()) == {"train": 6}


EXAMPLE = Path(__file__).parents[2] / "examples" / "from-dpgen"


@pytest.mark.soak
def test_the_example_runs_to_its_end_from_its_two_files(tmp_path: Path) -> None:
    """With short trainings and trajectories, but its own program, files and machine file."""
    folder = tmp_path / "from-dpgen"
    shutil.copytree(EXAMPLE, folder)
    param = json.loads((folder / "param.json").read_text())
    param |= {"numb_models": 2, "fp_task_max": 2, "model_devi_jobs": param["model_devi_jobs"][:2]}
    param["default_training_param"]["training"]["numb_steps"] = 100
    param |= {"model_devi_f_trust_lo": 0.001, "model_devi_f_trust_hi": 100}
    (folder / "param.json").write_text(json.dumps(param))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ("run", folder / "param.json", folder / "machine.json", "--root", tmp_path / "root")
    said = dpstream(*words, "--workers", "trainer=1,explorer=1", status=1, PATH=path)
    text = " ".join(said.split())
    assert "this machine labels with the command of fp: custom=python label.py" in text
    assert "labels are not shared with other campaigns" in text
    assert "stage job-000 was explored once" in text
    store = FolderStore(tmp_path / "root")
    chosen = [m for m in read_messages(store, "from-dpgen") if isinstance(m, CandidatesSelected)]
    assert [len(m.labels) for m in chosen] == [2, 2]
    assert all("uniform draw" in pick.reason for m in chosen for pick in m.labels)


@pytest.mark.soak
def test_dpgens_layout_goes_on_where_it_ended(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = dpstream("export", "--root", root, "--layout", "dpgen", "--output", out)
    assert "6 labels" in said
    found = sorted(str(p.relative_to(out)) for p in out.glob("iter.*/02.fp/data.*/*/set.000"))
    assert [name.split("/")[2] for name in found] == ["data.000", "data.001"]
    assert (out / "iter.000001" / "00.train" / "graph.001.pb").resolve().stat().st_size > 0
    assert (out / "record.dpgen").read_text().split("\n")[8] == "0 8"

    jobs = dpgen_methane.PARAM["model_devi_jobs"]
    more = {**dpgen_methane.param(), "model_devi_jobs": [*jobs, jobs[0]]}
    param = dpgen_methane.write_files(out, {**more, "init_data_sys": ["init"]})
    spec = out / "campaign.yaml"
    said = dpstream("import", param, "-o", spec, "--from-run", out, "--code", "tblite")
    assert "at most 3 labels: 1 jobs" in said
    data = yaml.safe_load(spec.read_text())["initial"]["data"]
    assert data[1:] == ["iter.000000/02.fp/data.000", "iter.000001/02.fp/data.001"]
