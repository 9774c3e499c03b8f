"""Pairs of files from DP-GEN's examples, small, run to the end with real labeling codes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.messages import CandidatesSelected, LabelsDone, StageEnded
from dpstream.shared.store.folder import FolderStore
from tests.support.command_line import dpstream
from tests.support.dpgen.dpgen_pairs import PAIRS, prepared

DATA = os.environ.get("DPSTREAM_TEST_DATA")
PROGRAMS = {"cp2k": "cp2k.psmp", "pwscf": "pw.x"}


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(DATA is None, reason="DPSTREAM_TEST_DATA names no folder of recorded data")
@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_of_dpgen_runs_to_its_end(name: str, tmp_path: Path) -> None:
    assert DATA is not None
    if name in PROGRAMS and shutil.which(PROGRAMS[name]) is None:
        pytest.skip(f"needs {PROGRAMS[name]}")
    pair, folder, root = PAIRS[name], tmp_path / name, tmp_path / "root"
    param, machine = prepared(pair, Path(DATA), folder)
    code = ("--code", pair.code) if pair.code else ()
    dpstream("import", param, machine, "-o", folder / "imported.yaml", *code)
    label = ("label", folder / "init.extxyz", "--recipe", folder / "imported.yaml")
    dpstream(*label, "-o", folder / "labelled", "--store", root)
    words = ("run", param, machine, *code, *pair.options, "--root", root)
    said = dpstream(*words, "--workers", "trainer=1,explorer=1,labeler=1", status=1)
    said = " ".join(said.split())
    assert "stage job-000 was explored once" in said
    heard = list(read_messages(FolderStore(root), name))
    assert [m.stage for m in heard if isinstance(m, StageEnded)] == [0, 1]
    chosen = [len(m.labels) for m in heard if isinstance(m, CandidatesSelected)]
    assert chosen == [2, 2], "fp_task_max"
    done = [m for m in heard if isinstance(m, LabelsDone)]
    accepted = sum(len(m.accepted) for m in done)
    assert accepted + sum(len(m.rejected) for m in done) == 4
    assert accepted >= 2, "aluminium at the Γ point does not always converge"
