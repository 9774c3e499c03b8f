"""`python -m benchmarks.exploration [WORKDIR]`: trains small committees (kept in WORKDIR), explores
with and without each engine, prints the results, and writes the plots to docs/images."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.exploration import bias, order

if __name__ == "__main__":
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/exploration").resolve()
    docs = Path(__file__).parents[2] / "docs" / "images"
    docs.mkdir(exist_ok=True)
    os.environ["DPSTREAM_CONFINE_WRITE"] = str(work)
    for each in (order, bias):
        each.main(work, docs)
