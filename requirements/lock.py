"""Writes the lock file of every image: `.venv/bin/python requirements/lock.py [IMAGE…]`.

A lock file pins all packages that an image needs, with their dependencies, at the versions of the
environment that runs this script (the tested one). Building an image then resolves no versions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parent
COMMON = (
    "ase",
    "boto3",
    "numpy",
    "pika",
    "prometheus-client",
    "pydantic",
    "pydantic-settings",
    "pyyaml",
    "structlog",
    "tenacity",
)
EXPLORER = ("ase-ga", "scipy", "spglib")
ENGINES = {
    "cpu": ("deepmd-kit[cpu{}]", "nvidia-ml-py"),
    # DeePMD-kit's own GPU code is built for CUDA 12; PyTorch brings a later one.
    "cuda": ("deepmd-kit[torch{}]", "nvidia-cuda-runtime-cu12", "nvidia-ml-py"),
}
"""TensorFlow on CPUs, PyTorch on GPUs; `{}` is filled with further extras."""
BATCHED = {"cpu": (), "cuda": ("torch-sim-atomistic",)}
"""What the exploration of many trajectories in one batch needs."""


def engines(variant: str, extras: str = "") -> tuple[str, ...]:
    return tuple(package.format(extras) for package in ENGINES[variant])


IMAGES = {
    "coordinator": (*COMMON, "fastapi", "immutables", "kubernetes", "psutil", "uvicorn"),
    "labeler": (*COMMON, "cryptography", "dpdata", "pyscf", "scipy", "tblite[ase]"),
    **{f"trainer-{each}": (*COMMON, *engines(each)) for each in ENGINES},
    **{
        f"explorer-{each}": (*COMMON, *EXPLORER, *engines(each, ",lmp"), *BATCHED[each])
        for each in ENGINES
    },
}
UNTESTED = ("dpstream", "setuptools")
"""Not pinned by the tested environment: PyTorch requires an earlier setuptools."""
LEFT_OUT = frozenset({"matplotlib"})
"""ASE requires it for plots, and no service plots."""


def lock(image: str, tested: Path) -> str:
    """The text of an image's lock file."""
    roots = [Requirement(root) for root in IMAGES[image]]
    resolved = resolve([str(root) for root in roots], tested)
    kept: dict[str, str] = {}
    for root in roots:
        keep(root, resolved, kept)
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(kept.items()))
    return f"# Written by requirements/lock.py for the image {image}.\n{pins}"


def keep(wanted: Requirement, resolved: Mapping[str, Any], kept: dict[str, str]) -> None:
    """Add a package and its dependencies to `kept`."""
    name = canonicalize_name(wanted.name)
    if name in LEFT_OUT or name not in resolved:
        return
    found = resolved[name]
    known, kept[name] = name in kept, found["version"]
    if known and not wanted.extras:
        return
    for text in found.get("requires_dist", ()):
        needed = Requirement(text)
        if _applies(needed, wanted.extras):
            keep(needed, resolved, kept)


def _applies(needed: Requirement, extras: set[str]) -> bool:
    marker = needed.marker
    return marker is None or any(marker.evaluate({"extra": each}) for each in ("", *extras))


def resolve(roots: list[str], tested: Path) -> dict[str, Any]:
    """Metadata of all packages that pip would install, by name."""
    command = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--constraint", str(tested), *roots],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    found = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    return {canonicalize_name(each["name"]): each for each in found}


def main(images: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tested = Path(folder, "tested.txt")
        pins = {each.name: each.version for each in metadata.distributions()}
        for name in UNTESTED:
            pins.pop(name, None)
        tested.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        for image in images or IMAGES:
            (FOLDER / f"{image}.txt").write_text(lock(image, tested))
            print(f"wrote requirements/{image}.txt", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
