"""Trains two PyTorch members on each of two tiny systems: `python tiny_torch_committees.py FOLDER`.

`FOLDER` holds the systems that `tiny_committees.py` writes. Writes `FOLDER/{…}-{member}/frozen.pth`
for `copper-gold` and `methane`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.models.tiny_committees import STEPS, training_input

SYSTEMS = ("copper-gold", "methane")
MEMBERS = 2
DP = (str(Path(sys.executable).with_name("dp")), "--pt")


def train_member(folder: Path, system: Path, seed: int, steps: int = STEPS) -> None:
    folder.mkdir(exist_ok=True)
    document = training_input(system, seed)
    document["training"] |= dict.fromkeys(("numb_steps", "disp_freq", "save_freq"), steps)
    document["learning_rate"]["decay_steps"] *= steps // STEPS
    (folder / "input.json").write_text(json.dumps(document))
    for words in (("train", "input.json", "--skip-neighbor-stat"), ("freeze", "-o", "frozen.pth")):
        subprocess.run([*DP, *words], cwd=folder, check=True)


def main(root: Path) -> None:
    for name in SYSTEMS:
        for number in range(MEMBERS):
            train_member(root / f"{name}-{number}", root / name, number + 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
