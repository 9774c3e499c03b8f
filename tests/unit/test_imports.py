"""The package is imported as `dpstream.*` alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = re.compile(r"^\s*(?:from|import)\s+(?:services|shared)\b", re.MULTILINE)
IMPORT_ALL = """
import importlib, pkgutil, sys
import dpstream

sys.modules |= {"deepmd": None, "tensorflow": None}  # slow to import; as where it is not installed
skipped = []
for found in pkgutil.walk_packages(dpstream.__path__, "dpstream."):
    if found.name == "dpstream.__main__":  # runs the command
        continue
    try:
        importlib.import_module(found.name)
    except ModuleNotFoundError as error:
        missing = error.name.partition(".")[0]
        assert missing not in ("dpstream", "services", "shared"), f"{found.name}: {error}"
        skipped.append(found.name)
strays = {"services", "shared"} & {name.partition(".")[0] for name in sys.modules}
assert not strays, strays
print(sum(name.startswith("dpstream.") for name in sys.modules), *skipped)
"""


@pytest.mark.slow
def test_every_module_is_imported_under_one_name() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported, *skipped = done.stdout.split()
    assert int(imported) > 200, skipped


def test_no_file_names_the_folders_as_packages() -> None:
    files = [
        path
        for folder in ("dpstream", "services", "shared", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 300
    assert [path for path in files if TOP_LEVEL.search(path.read_text())] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        ("--version", {"pydantic", "numpy", "dpstream.shared.spec"}),
        # SciPy alone, which ase.build and ase.neighborlist import, takes a third of a second.
        ("--help", {"scipy", "dpdata", "torch"}),
        ("status --help", {"scipy", "boto3", "fastapi", "dpstream.dpgen.load"}),
    ],
)
def test_the_command_line_starts_without_what_is_slow_to_import(
    words: str, left_out: set[str]
) -> None:
    code = (
        "import sys\n"
        "from dpstream.commands.app import command\n"
        f"command({words.split()}, standalone_mode=False)\n"
        f"print(*{left_out} & {{*sys.modules}}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n"), done.stderr
