"""What the documentation names exists: linked files and sections, commands and their options."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore import xform_name

from dpstream.commands.app import command as dpstream

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "k8s/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
CLOUDS = [ROOT / "docs" / f"operating-{cloud}.md" for cloud in ("aws", "alibaba")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CLIENT_ONLY = {"output", "query", "region"}
"""Options of `aws` itself."""


def heading_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in heading_anchors(target), link


def script(page: Path) -> str:
    """The indented blocks of a page: what is typed from its beginning to its end."""
    lines = FENCE.sub("", page.read_text()).splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    "))


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The words of every call of a program, up to the end of the call."""
    text = script(page).replace("\\\n", " ")
    for found in re.finditer(rf"(?:^|[(|&;{{]) *({program} [^\n]*)", text, re.MULTILINE):
        lexer = shlex.shlex(found[1], posix=True, punctuation_chars="()|;&")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = []
        try:
            for word in lexer:
                if set(word) <= set("()|;&"):
                    break
                words.append(word)
        except ValueError:  # a quoted argument goes on in the next line
            pass
        yield words


@pytest.mark.parametrize("page", CLOUDS, ids=lambda path: path.stem)
def test_what_is_typed_on_a_cloud_is_a_script(page: Path) -> None:
    done = subprocess.run(["bash", "-n"], input=script(page), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for language, text in FENCE.findall(page.read_text()):
        assert {"json": json.loads, "yaml": yaml.safe_load}[language](text)


@cache
def service_model(service: str) -> Any:
    return botocore.session.get_session().get_service_model(service)


@pytest.mark.slow
def test_calls_of_aws_exist() -> None:
    calls = [words[1:] for words in commands(CLOUDS[0], "aws") if words[1] != "s3"]
    assert len(calls) > 20
    for service, command, *rest in calls:
        model = service_model({"s3api": "s3"}.get(service, service))
        operation = {xform_name(n, "-"): n for n in model.operation_names}.get(command)
        if command == "get-login-password":  # made by the command line tool itself
            continue
        assert operation, command
        known = set(model.operation_model(operation).input_shape.members)
        known = {xform_name(name, "-") for name in known} | CLIENT_ONLY
        for option in rest:
            if option.startswith("--"):
                assert option.removeprefix("--").removeprefix("no-") in known, (command, option)


@pytest.mark.parametrize("page", CLOUDS, ids=lambda path: path.stem)
def test_calls_of_dpstream_exist(page: Path) -> None:
    calls = list(commands(page, "dpstream"))
    assert calls
    for _, *words in calls:
        command: Any = dpstream
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words
