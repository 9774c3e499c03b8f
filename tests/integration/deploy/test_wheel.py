"""The wheel holds one package, and works installed beside others that are called `services` and
`shared`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("dpstream", "services", "shared")
DATA_FILES = {
    "py.typed",
    "services/py.typed",
    "shared/py.typed",
    "services/coordinator/http/dashboard.html",
    "export/templates/README.txt.j2",
    "export/templates/in.lammps.j2",
    "report/templates/plot.svg.j2",
    "report/templates/report.html.j2",
    "report/templates/style.css.j2",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks: a build writes into its source folder."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source))
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A folder with packages that must not be imported."""
    for name in ("services", "shared"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a decoy')\n")
    return tmp_path


def test_the_wheel_holds_one_package_with_its_data_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = f"dpstream-{version('dpstream')}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"dpstream", metadata}
    assert {f"dpstream/{name}" for name in DATA_FILES} <= names
    sources = {
        f"dpstream/{path.relative_to(ROOT / 'dpstream')}"
        for path in _files(ROOT / "dpstream")
        if "__pycache__" not in path.parts
    }
    assert sources <= names, "every file of the package"


def test_the_installed_command_imports_no_namesake(installed: Path, decoys: Path) -> None:
    dpstream = str(installed / "bin" / "dpstream")
    place = "import dpstream; print(dpstream.__file__)"
    assert str(installed) in _run(installed, decoys, sys.executable, "-c", place)
    assert _run(installed, decoys, dpstream, "--version").split() == [
        "dpstream",
        version("dpstream"),
    ]
    assert '"$defs"' in _run(installed, decoys, dpstream, "schema")
    _run(installed, decoys, dpstream, "new", "copper")
    assert (decoys / "copper" / "campaign.yaml").exists()
    service = (sys.executable, "-m", "dpstream.services.coordinator", "--help")
    assert "DPSTREAM_BROKER" in _run(installed, decoys, *service)


def test_the_decoys_would_be_found(installed: Path, decoys: Path) -> None:
    with pytest.raises(AssertionError, match="a decoy"):
        _run(installed, decoys, sys.executable, "-c", "import shared")


def _files(folder: Path) -> list[Path]:
    """Through links to folders too, which `rglob` does not follow."""
    walked = os.walk(folder, followlinks=True)
    return [Path(parent) / name for parent, _, names in walked for name in names]


def _run(installed: Path, folder: Path, *command: str) -> str:
    """What a command prints that is run in a folder, with that folder first on the path."""
    path = os.pathsep.join(map(str, (folder, installed)))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
