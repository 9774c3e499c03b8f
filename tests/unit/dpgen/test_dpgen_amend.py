"""More model_devi_jobs in DP-GEN's param.json: the jobs become stages of the campaign that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpstream.commands.read_spec import prepared
from dpstream.running.submit import submit
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.local_run import at_work
from tests.support.command_line import run_command
from tests.support.dpgen.dpgen_methane import param, write_files, write_labels, write_structures

pytestmark = pytest.mark.usefixtures("no_log_lines")
Call = Callable[..., tuple[int, str, str]]
ROOT = Path("runs")


def job(number: int, **changes: Any) -> dict[str, Any]:
    return {**param()["model_devi_jobs"][0], "_idx": f"0{number}", "sys_idx": [0], **changes}


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """The command line in a folder `methane` with DP-GEN's files; one job, of two systems."""
    folder = tmp_path / "methane"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    for variable in ("DPSTREAM_BROKER", "DPSTREAM_STORE"):
        monkeypatch.delenv(variable, raising=False)
    write_structures(folder / "data")
    write_labels(folder / "data/init", 4)
    write_files(folder, param(model_devi_jobs=[job(0)]))
    return lambda *words: run_command(monkeypatch, capsys, *words)


@pytest.mark.slow
def test_appended_jobs_become_appended_stages(call: Call) -> None:
    spec, gathered, recipe = prepared(Path("param.json"), None, None, False, "tblite")
    submit(spec, gathered, recipe, FolderStore(ROOT), 100.0)
    longer = [job(0), job(1, temps=[300]), job(2, temps=[600], sys_idx=[1])]
    write_files(Path(), param(model_devi_jobs=longer))
    with at_work(ROOT, "methane") as run:
        run.until(lambda state: state.exploration.round)
        words = ("amend", "methane", "param.json", "machine.json", "--code", "tblite", "--yes")
        status, said, errors = call(*words)
        assert (status, errors) == (0, "")
        assert [line for line in said.splitlines() if line.startswith("  ")] == [
            "  stage `job-001` added after `job-000`: sys-000 at 300 K",
            "  stage `job-002` added after `job-001`: sys-001 at 600 K",
            "  system `sys-001` added",
            "  budget.labels 3 → 9",
        ]
        assert "takes effect when the running round has ended" in said
        run.until(lambda state: state.finished)
        verdicts = [ended.verdict for ended in run.state.exploration.ended]
        assert set(verdicts) <= {"explored", "converged"}
        assert len(verdicts) == 3


def test_import_replaces_the_spec_and_names_the_next_command(call: Call) -> None:
    words = ("import", "param.json", "machine.json", "--code", "tblite")
    assert call(*words, "--name", "ch4")[0] == 0
    write_files(Path(), param(model_devi_jobs=[job(0), job(1, temps=[300])]))
    assert call(*words)[2].endswith(
        "campaign.yaml: already exists; give another file name (--amend replaces it)\n"
    )
    status, said, _ = call(*words, "--amend")
    assert status == 0
    assert said.splitlines()[-1] == (
        "wrote campaign.yaml; next: dpstream amend ch4 campaign.yaml, or dpstream run "
        "campaign.yaml --amend"
    )
    document = yaml.safe_load(Path("campaign.yaml").read_text())
    assert document["name"] == "ch4"
    assert [stage["name"] for stage in document["stages"]] == ["job-000", "job-001"]
    assert call(*words, "--amend", "--name", "another")[2] == (
        "dpstream: --name: another: campaign.yaml is the spec of ch4; leave out --name\n"
    )
