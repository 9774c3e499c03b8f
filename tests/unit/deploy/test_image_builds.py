"""What a build of images sees of the machine's configuration of pip."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import pytest

from deploy import images

pytestmark = pytest.mark.slow


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, a local index and a certificate that a file names."""
    for folder in ("wheels", "index/simple", "index/files"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ca.crt").touch()
    file = tmp_path / "pip.conf"
    file.write_text(
        f"""[global]
timeout = 7
cert = {tmp_path}/ca.crt
find-links = {tmp_path}/wheels
    {tmp_path}/absent
extra-index-url = file://{tmp_path}/index/simple https://example.invalid/simple
"""
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_TIMEOUT", "9")
    return tmp_path


def test_files_and_variables_become_one_file(configured: Path) -> None:
    parser = configparser.RawConfigParser()
    parser.read_string(images.pip_configuration())
    options = parser["global"]
    assert options["cert"] == f"{configured}/ca.crt"
    assert "config-file" not in options
    assert options["timeout"] == "9"  # a variable overrides a file
    assert options["find-links"].split() == [f"{configured}/wheels", f"{configured}/absent"]


def test_what_is_mounted_is_what_it_names(configured: Path) -> None:
    named = set(images.named_paths(images.pip_configuration()))
    here = {path for path in named if path.is_relative_to(configured)}
    assert here == {configured / name for name in ("ca.crt", "wheels", "index")}
