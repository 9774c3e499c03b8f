"""The LAMMPS input, as text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpstream.services.explorer.lammps.script import (
    COLDEST,
    data_file,
    pair_commands,
    resume_script,
    start_script,
)
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.spec import Md
from dpstream.shared.values import Condition, Trust

METHANE = Frame(
    ("C", "H", "H", "H", "H"),
    np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1]]) * 0.629118,
)
CARBON_DIOXIDE = Frame(("C", "O", "O"), np.array([[0, 0, 0], [0, 0, 1.16], [0, 0, -1.16]]))
TRICLINIC = Frame(
    ("Al", "Al"),
    np.array([[0.1, 0.2, 0.3], [1 / 3, 2.0, 2.5]]),
    np.array([[4.1, 0, 0], [0.5, 4.2, 0], [-0.25, 0.125, 4.3]]),
)
ROOM = Condition(system="a", temperature=300)
MODELS = [Path(f"/models/{n}.pb") for n in range(4)]
TRUST = Trust(low=0.1, high=0.3)


def started(frame: Frame, condition: Condition = ROOM, **md: object) -> list[str]:
    script = start_script(frame, Path("/t/d"), Md.model_validate(md), condition, 11, ["PAIR"])
    return [*script.header, *script.dynamics, *script.velocity]


def starting(commands: list[str], words: str) -> list[str]:
    return [command for command in commands if command.startswith(words)]


def test_data_file_reads_back_to_the_bit() -> None:
    lines = data_file(TRICLINIC, ["Si", "Al"], {}).splitlines()
    assert "0.5 -0.25 0.125 xy xz yz" in lines
    assert "0.0 4.1 xlo xhi" in lines
    number, kind, *position = lines[-1].split()
    assert (number, kind) == ("2", "2")
    assert [float(x) for x in position] == TRICLINIC.positions[1].tolist()


def test_masses_are_the_standard_ones_unless_given() -> None:
    lines = data_file(METHANE, ["C", "H"], {"H": 2.014}).splitlines()
    masses = lines[lines.index("Masses") + 2 :][:2]
    assert masses == ["1 12.011", "2 2.014"]


def test_a_molecule_has_moving_walls_and_no_tilt() -> None:
    assert "xy xz yz" not in data_file(METHANE, ["C", "H"], {})
    commands = started(METHANE)
    assert "boundary m m m" in commands
    assert "boundary p p p" in started(TRICLINIC)


@pytest.mark.parametrize(("frame", "freedoms"), [(METHANE, 6), (CARBON_DIOXIDE, 5), (TRICLINIC, 3)])
def test_temperature_counts_only_the_freedoms_that_move(frame: Frame, freedoms: int) -> None:
    commands = started(frame)
    assert f"compute_modify thermo_temp extra/dof {freedoms}" in commands
    assert "fix_modify motion temp thermo_temp" in commands
    rotation = "rot no" if frame.cell is not None else "rot yes"
    assert rotation in starting(commands, "velocity")[0]


@pytest.mark.parametrize(
    ("ensemble", "expected"),
    [
        ("nve", "fix motion all nve"),
        ("nvt", "fix motion all nvt temp 300.0 300.0 0.1"),
        ("npt", "fix motion all npt temp 300.0 300.0 0.1 iso 5.0 5.0 0.5"),
        ("npt-iso", "fix motion all npt temp 300.0 300.0 0.1 iso 5.0 5.0 0.5"),
        ("npt-aniso", "fix motion all npt temp 300.0 300.0 0.1 aniso 5.0 5.0 0.5"),
        ("npt-tri", "fix motion all npt temp 300.0 300.0 0.1 tri 5.0 5.0 0.5"),
    ],
)
def test_ensembles(ensemble: str, expected: str) -> None:
    condition = Condition(system="a", temperature=300, pressure=5)
    assert expected in started(TRICLINIC, condition, ensemble=ensemble)


def test_zero_temperature_is_not_divided_by() -> None:
    commands = started(METHANE, Condition(system="a", temperature=0))
    assert f"fix motion all nvt temp {COLDEST} {COLDEST} 0.1" in commands
    assert starting(commands, f"velocity all create {COLDEST} 11 ")


def test_a_restart_keeps_its_velocities() -> None:
    script = resume_script(METHANE, Path("/t/r"), Md(), ROOM, ["PAIR"])
    assert script.source == "/t/r"
    assert script.velocity == []


def test_the_box_of_a_reused_session_is_that_of_the_data_file() -> None:
    script = start_script(TRICLINIC, Path("/t/d"), Md(), ROOM, 1, ["PAIR"])
    assert script.box == (
        "change_box all x final 0.0 4.1 y final 0.0 4.2 z final 0.0 4.3 "
        "xy final 0.5 xz final -0.25 yz final 0.125 units box"
    )
    assert "xy" not in start_script(METHANE, Path("/t/d"), Md(), ROOM, 1, ["PAIR"]).box


def test_the_driver_comes_first_and_the_order_rotates() -> None:
    style, coefficients = pair_commands(MODELS, 2, ["C", "H"], 10, TRUST, METHANE)
    models = [word for word in style.split() if "/models/" in word]
    assert models == [f'"/models/{n}.pb"' for n in (2, 3, 0, 1)]
    assert style.endswith('out_file "<deviations>" out_freq 10')
    assert coefficients == "pair_coeff * * C H"


def test_relative_levels_reach_the_pair_style() -> None:
    trust = TRUST.model_copy(update={"relative": 0.5, "relative_v": 0.25})
    style = pair_commands(MODELS, 0, ["C"], 10, trust, METHANE)[0]
    assert style.endswith("out_freq 10 relative 0.5 relative_v 0.25")


def test_one_model_alone_has_no_deviation() -> None:
    style = pair_commands(MODELS[:1], 0, ["C"], 10, TRUST, METHANE)[0]
    assert style == 'pair_style deepmd "/models/0.pb"'


def test_parameters_of_the_frame_reach_the_pair_style() -> None:
    hot = replace(METHANE, fparam=np.array([0.5, 1.0]), aparam=np.full((5, 1), 2.5))
    style = pair_commands(MODELS[:1], 0, ["C"], 10, TRUST, hot)[0]
    assert style == 'pair_style deepmd "/models/0.pb" fparam 0.5 1.0 aparam 2.5'
    uneven = replace(METHANE, aparam=np.arange(5.0).reshape(5, 1))
    with pytest.raises(ValueError, match="one aparam for all atoms"):
        pair_commands(MODELS[:1], 0, ["C"], 10, TRUST, uneven)


def test_what_has_no_dynamics_is_refused() -> None:
    with pytest.raises(ValueError, match="supercell"):
        started(Frame(("Al",), np.zeros((1, 3)), np.eye(3) * 3))
    with pytest.raises(ValueError, match="vacuum"):
        started(METHANE, ensemble="npt-iso")
