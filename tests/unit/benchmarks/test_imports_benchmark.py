"""The table of `python -m benchmarks.imports`."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.imports.__main__ import table, tried
from tests.support.dpgen import dpgen_methane


def test_a_folder_is_counted_by_reason(tmp_path: Path) -> None:
    files = {
        "good/param.json": dpgen_methane.param(),
        "cpx/param.json": dpgen_methane.param(fp_style="cpx"),
        "potcar/param.json": dpgen_methane.param(fp_pp_files=["POTCAR"]),
        "shape/param.json": dpgen_methane.param(model_devi_plumed_path=True),
        "machine.json": dpgen_methane.MACHINE,
        "simplify.json": {"pick_data": "x", "fp_style": "vasp"},
        "list.json": [1],
    }
    for name, document in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(document))
    lines = list(table(tried(tmp_path)))
    assert lines[2:4] == ["| param | 4 | 1 | 1 | 1 | 1 |", "| machine | 1 | 1 | 0 | 0 | 0 |"]
    assert any(line.startswith("| model_devi_plumed_path: …: reference paths") for line in lines)
    assert lines[-2].endswith("nothing refused on purpose: 1 of 3 (33.3%)")
    assert lines[-1].endswith("DP-GEN itself can run: 1 of 2 (50.0%)")
