"""Checks that both sides compute the same labels: DP-GEN's command labels one initial frame,
too."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("pyscf_fp.py")
TOLERANCE = 1e-4
"""eV/Å."""


def check_labels(
    system: Path, python: Path, environment: Mapping[str, str], scratch: Path
) -> float:
    """Labels the first frame of `system` (DeePMD npy) with `pyscf_fp.py` under `python`. Returns
    the largest force difference, eV/Å; raises RuntimeError above the tolerance."""
    shutil.rmtree(scratch, ignore_errors=True)
    frame = scratch / "frame" / "set.000"
    frame.mkdir(parents=True)
    for name in ("type.raw", "type_map.raw"):
        shutil.copy(system / name, scratch / "frame" / name)
    np.save(frame / "coord.npy", np.load(system / "set.000" / "coord.npy")[:1])
    subprocess.run([str(python), str(SCRIPT)], cwd=scratch, env=dict(environment), check=True)
    ours = np.load(system / "set.000" / "force.npy")[0]
    theirs = np.load(scratch / "label" / "set.000" / "force.npy")[0]
    difference = float(np.abs(ours - theirs).max())
    if difference > TOLERANCE:
        raise RuntimeError(f"labels of DP-GEN and dpstream differ by {difference:.2g} eV/Å")
    return difference
