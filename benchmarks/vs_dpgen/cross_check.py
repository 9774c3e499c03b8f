"""Both sides must compute the same labels: one initial frame, labelled by DP-GEN's command too."""

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
    """Largest force difference in eV/Å of the first frame of `system` (DeePMD npy), labelled by
    `pyscf_fp.py` under `python`. RuntimeError above the tolerance."""
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
        raise RuntimeError(f"labels differ by {difference:.2g} eV/Å between DP-GEN and dpstream")
    return difference
