"""The layout of the repository: what shares code where, and how large a folder may be."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("dpstream", "services", "shared")
SOURCES = (*PRODUCT, "tests")
MOST = 17
"""Python files in one folder, without its `__init__.py`: as many names as one glance takes in."""
ONE_FILE_PER_PROGRAM = "services/labeler/codes"
"""Grows with the programs that are supported, and is read one program at a time."""


def imported(source: str) -> Iterator[str]:
    """Full names of everything that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{each.name}" for each in node.names)


def from_test_files(source: str) -> list[str]:
    return [
        name for name in imported(source) if any(p.startswith("test_") for p in name.split("."))
    ]


@pytest.mark.slow
def test_no_test_imports_another_test_file() -> None:
    """What tests share is in `tests/support`."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    found = {str(file.relative_to(ROOT)): from_test_files(file.read_text()) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


def test_imports_of_test_files_are_found_in_every_form() -> None:
    for source in (
        "from tests.unit.shared.runtime.test_worker import label",
        "from tests.unit import test_worker",
        "from . import test_worker",
        "from .test_worker import label",
        "import tests.unit.shared.runtime.test_worker as worker",
        "def late():\n    from tests.unit.shared.runtime.test_worker import label",
    ):
        assert from_test_files(source), source
    assert from_test_files("from tests.support.workers.worker import label") == []


def test_the_client_that_runs_in_a_pod_imports_no_tests() -> None:
    """Of the tests, the pod has this file only."""
    client = ROOT / "tests" / "support" / "deployments" / "kube_client.py"
    assert not [name for name in imported(client.read_text()) if name.startswith("tests.")]


def test_no_folder_is_too_large_to_survey() -> None:
    sizes = Counter(
        str(file.parent.relative_to(ROOT))
        for folder in SOURCES
        for file in (ROOT / folder).rglob("*.py")
        if file.name != "__init__.py"
    )
    assert sizes["services/labeler"] > 5, "the files are found"
    large = {folder: size for folder, size in sizes.items() if size > MOST}
    large.pop(ONE_FILE_PER_PROGRAM, None)
    assert large == {}


TWO_RELEASES = {"Conserving", "Thermostatted"}
"""One class for each supported release of TorchSim."""


def test_no_class_name_stands_for_two_things() -> None:
    names = Counter(
        name
        for folder in PRODUCT
        for file in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"^class ([A-Za-z]\w*)", file.read_text(), re.MULTILINE)
    )
    assert {name for name, times in names.items() if times > 1} == TWO_RELEASES


PLACED = re.compile(r"((?:`[\w.]+`(?:, | and )?)+) in `([\w/]+\.py)`")
"""As in "`Frame`, `Batch` in `shared/atoms/frames.py`"."""


def test_what_the_docs_place_in_a_file_is_there() -> None:
    missing = [
        (str(page.relative_to(ROOT)), name, file)
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for names, file in PLACED.findall(page.read_text())
        for name in re.findall(r"`([\w.]+)`", names)
        if not any(
            re.search(rf"\b{name.split('.')[-1]}\b", path.read_text())
            for folder in PRODUCT
            for path in (ROOT / folder).rglob(Path(file).name)
            if str(path).endswith(file)
        )
    ]
    assert missing == []
