"""Patterns name the files that the shell lists."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dpstream.inputs.read_labelled import _size, read_labelled
from dpstream.inputs.reading import patterns
from dpstream.inputs.reading.deepmd_systems import systems_in
from dpstream.inputs.reading.patterns import find_files, find_grouped, folders, passed_over
from dpstream.shared.errors import SpecError

FILES = (
    "conf/a/POSCAR",
    "conf/b.2/POSCAR",
    "conf/b.10/POSCAR",
    "conf/.ipynb_checkpoints/POSCAR",
    "flat/POSCAR.2",
    "flat/POSCAR.10",
    "flat/.DS_Store",
    "flat/._POSCAR.2",
    "elsewhere/deep/er/POSCAR",
    "elsewhere/.git/POSCAR",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text\n")
    (tmp_path / "conf/link").symlink_to("../elsewhere")
    (tmp_path / "elsewhere/deep/back").symlink_to("../../elsewhere")
    return tmp_path


def found(pattern: str, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in find_files(pattern, folder, "key")]


@pytest.mark.parametrize(
    "pattern",
    ["conf/*/POSCAR", "flat/*", "flat/POSCAR.?", "conf/[ab]*/POSCAR", "conf/link/deep/*", "con*"],
)
def test_what_the_shell_lists(tree: Path, pattern: str) -> None:
    shell = subprocess.run(
        ["bash", "-c", f"ls -d {pattern}"], cwd=tree, capture_output=True, text=True, check=True
    )
    assert set(found(pattern, tree)) == set(shell.stdout.split())


def test_hidden_files_match_where_the_pattern_names_the_dot(tree: Path) -> None:
    assert found("flat/.*", tree) == ["flat/.DS_Store", "flat/._POSCAR.2"]


def test_numbers_in_names_are_in_the_order_of_numbers(tree: Path) -> None:
    assert found("flat/*", tree) == ["flat/POSCAR.2", "flat/POSCAR.10"]
    assert found("conf/b*/POSCAR", tree) == ["conf/b.2/POSCAR", "conf/b.10/POSCAR"]


def test_two_stars_are_any_depth_behind_links_too_and_each_folder_once(tree: Path) -> None:
    assert found("conf/**/POSCAR", tree) == [
        "conf/a/POSCAR",
        "conf/b.2/POSCAR",
        "conf/b.10/POSCAR",
        "conf/link/deep/er/POSCAR",
    ]
    assert found("elsewhere/**/er/**", tree) == ["elsewhere/deep/er/POSCAR"]
    assert len(list(folders(tree / "elsewhere"))) == 3, "a link back does not end in a circle"


@contextmanager
def as_user() -> Iterator[None]:
    """Not as root, who may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("mode", [0o000, 0o644], ids=["closed", "listed-only"])
def test_a_folder_that_may_not_be_read_is_passed_over_and_told(mode: int) -> None:
    with TemporaryDirectory() as name:
        tree, locked = Path(name), Path(name) / "conf/a"
        for each in ("a", "b"):
            (tree / "conf" / each).mkdir(parents=True)
            (tree / "conf" / each / "type.raw").write_text("0\n")
        tree.chmod(0o755)
        locked.chmod(mode)
        told: list[str] = []
        skipped: list[Path] = []
        with as_user():
            assert found("conf/**/type.raw", tree) == ["conf/b/type.raw"]
            find_grouped("conf/**/type.raw", tree, "key", skipped.append)
            assert systems_in(tree / "conf", told.append) == [tree / "conf/b"]
        assert told == [f"skipped, because it may not be read: {locked}"]
        assert skipped == [locked]
        assert list(passed_over([locked, locked, tree])) == [f"{told[0]} (and 1 more)"]
        locked.chmod(0o755)


def test_a_tree_of_very_many_files_is_one_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "MOST_ENTRIES", 3)
    with pytest.raises(SpecError, match=r"^key: '\*\*/POSCAR': more than 3 files below "):
        find_files("**/POSCAR", tree, "key")
    with pytest.raises(SpecError, match=r"^key: conf: more than 3 files below "):
        read_labelled(["conf"], tree, ["H"], "key")


def test_limits_of_a_folder_are_by_the_systems_in_it(tmp_path: Path) -> None:
    (tmp_path / "a/set.000").mkdir(parents=True)
    for name in ("type.raw", "set.000/energy.npy", "trajectory.xyz"):
        (tmp_path / "a" / name).write_text("1234")
    (tmp_path / "movie.mp4").write_text("1234")
    assert _size(tmp_path) == 8


def test_a_name_with_brackets_is_a_name(tree: Path) -> None:
    (tree / "flat[1]").write_text("text\n")
    assert found("flat[1]", tree) == ["flat[1]"]


def test_a_hash_begins_a_group_unless_a_file_has_it(tree: Path) -> None:
    assert find_grouped("flat/*.2#/group", tree, "key") == ([tree / "flat/POSCAR.2"], "/group")
    (tree / "a#b").write_text("text\n")
    assert find_grouped("a#b", tree, "key") == ([tree / "a#b"], "")


def test_home_and_absolute_names(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    for pattern in ("~/flat/*", f"{tree}/flat/*"):
        assert find_files(pattern, Path("/nowhere"), "key") == [
            tree / "flat/POSCAR.2",
            tree / "flat/POSCAR.10",
        ]


@pytest.mark.parametrize("pattern", ["none/*", "flat/.trash/*", "none", "**/none"])
def test_without_a_match_key_and_pattern_are_named(tree: Path, pattern: str) -> None:
    with pytest.raises(SpecError, match="key: no file matches ") as refused:
        find_files(pattern, tree, "key")
    assert repr(pattern) in str(refused.value)
