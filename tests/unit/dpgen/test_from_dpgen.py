"""The example that is in the form of DP-GEN's tutorial: nothing in it is refused or ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpstream.dpgen.load import convert_file, load_campaign
from dpstream.dpgen.machines.here import COMMANDS, adopt, read_here
from dpstream.dpgen.machines.pools import Labels
from dpstream.inputs.gather import gather
from dpstream.services.labeler.recipes import make_recipe

EXAMPLE = Path(__file__).parents[3] / "examples" / "from-dpgen"
PARAM, MACHINE = EXAMPLE / "param.json", EXAMPLE / "machine.json"


@pytest.mark.slow
def test_the_example_is_imported_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMANDS, "")
    machine = read_here(MACHINE)
    assert not machine.problem
    said: list[str] = []
    spec = load_campaign(PARAM, None, None, machine.machines, said.append)
    assert said == [], "no key is ignored"
    recipe = make_recipe(spec.labels)
    assert recipe.settings["files"] == {"label.py": (EXAMPLE / "label.py").read_text()}
    gathered = gather(spec, EXAMPLE)
    assert {name: len(frames) for name, frames in gathered.systems.items()} == {
        "sys-000": 2,
        "sys-001": 2,
    }
    assert len(gathered.labelled) == 40
    monkeypatch.setenv("PATH", "/nowhere")
    assert "python: no such program" in adopt(machine, Labels("custom", is_own=True))


def test_the_account_of_the_example_has_a_reason_for_every_key() -> None:
    machines = read_here(MACHINE).machines
    lines = convert_file(PARAM, EXAMPLE, None, None, None, machines).lines
    assert {line.fate for line in lines} <= {"mapped", "unused"}
    assert all(line.words for line in lines)
