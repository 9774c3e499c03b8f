"""Exploration engines: their settings in a spec, and the text they give to LAMMPS."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from dpstream.services.explorer.engines.atoms import atom_numbers, numbered, refusal
from dpstream.services.explorer.engines.bias import colvars_input
from dpstream.services.explorer.engines.potential import pair_commands
from dpstream.services.explorer.engines.swap_mc import swap_commands
from dpstream.services.explorer.engines.template import parse, revised, standard_words
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Md, Spec, load_spec
from dpstream.shared.spec.engines import AnyEngine, Colvars, Plain, Potential, SwapMc, Template
from dpstream.shared.values import Condition

ETHANE = ("C", "C", *"HHHHHH")
TEXTS = {"lammps": "lmp", "plumed": "plm"}
"""Our keys of a template, and DP-GEN's."""
ROOM = Condition(system="s", temperature=300.0, pressure=5.0)


def spec(engine: Any, type_map: tuple[str, ...] = ("C", "H"), **stage: Any) -> dict[str, Any]:
    return {
        "name": "c",
        "type_map": list(type_map),
        "systems": {"s": {"structures": ["a.xyz"]}},
        "initial": {"perturb": {}},
        "stages": [
            {"name": "one", "systems": ["s"], "temperatures": [300], "engine": engine, **stage}
        ],
    }


def written(tmp_path: Path, document: dict[str, Any]) -> Path:
    path = tmp_path / "campaign.json"
    path.write_text(json.dumps(document))
    return path


# ------------------------------------------------------------------------------------- settings


def test_an_engine_is_named_or_spelt_out() -> None:
    assert Spec.model_validate(spec("md")).stages[0].engine == Plain()
    swap = Spec.model_validate(spec({"kind": "swap-mc", "swaps": [["C", "H"]]}))
    assert Spec.model_validate_json(swap.model_dump_json()) == swap


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("swapmc", "stages.0.engine.kind: 'swapmc'; did you mean 'swap-mc'?"),
        ({"every": 5}, "stages.0.engine.kind: missing"),
        ("swap-mc", "stages.0.engine.swaps: missing"),
        (
            {"kind": "swap-mc", "swaps": [["C", "H"]], "evry": 1},
            "stages.0.engine.evry: unknown key; did you mean 'every'?",
        ),
        (
            {"kind": "swap-mc", "swaps": [["C", "O"]]},
            "stages.0.engine.swaps: 'O' is not in type_map (C, H)",
        ),
        (
            {"kind": "swap-mc", "swaps": [["C", "C"]]},
            "stages.0.engine: swaps: C-C: give two different elements",
        ),
        ({"kind": "colvars"}, "stages.0.engine: give exactly one of variables and input"),
        (
            {"kind": "colvars", "variables": [{"kind": "distanc"}]},
            "stages.0.engine.variables.0.kind: 'distanc'; did you mean 'distance'?",
        ),
        (
            {"kind": "template", "lammps": "run 1\n", "system_revisions": {"t": {}}},
            "stages.0.engine.system_revisions: 't' is not in systems (s)",
        ),
        (
            {"kind": "template", "lammps": "in.lmp"},
            "in.lmp: cannot be read: No such file or directory",
        ),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, engine: Any, said: str) -> None:
    path = written(tmp_path, spec(engine))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value).endswith(said)
    assert "\n" not in str(caught.value)


def test_named_files_travel_as_text(tmp_path: Path) -> None:
    (tmp_path / "in.lmp").write_text("run V_NSTEPS\n")
    (tmp_path / "pot").write_text("0 0\n")
    engine = load_spec(written(tmp_path, spec({"kind": "template", "lammps": "in.lmp"})))
    assert engine.stages[0].engine == Template(kind="template", lammps="run V_NSTEPS\n")
    pair = ["pair_style table linear 10", "pair_coeff * * a.tab X"]
    potential = {"kind": "potential", "pair": pair, "files": {"a.tab": "pot"}}
    loaded = load_spec(written(tmp_path, spec(potential))).stages[0].engine
    assert isinstance(loaded, Potential)
    assert loaded.files == {"a.tab": "0 0\n"}
    with pytest.raises(ValidationError):
        TypeAdapter(AnyEngine).validate_python({**potential, "files": {"../a": "x\n"}})


def test_every_combination_of_revisions_is_a_condition() -> None:
    engine = {
        "kind": "template",
        "lammps": "run V_NSTEPS\n",
        "revisions": {"lammps": {"V_A": [1, 2]}, "plumed": {"V_A": ["x", "y", "z"]}},
    }
    (stage,) = Spec.model_validate(spec(engine, temperatures=[300, 600])).stages
    conditions = list(stage.conditions())
    assert len(conditions) == len({str(c) for c in conditions}) == 12
    assert str(conditions[1]) == "s 300 K revision 1"
    assert isinstance(stage.engine, Template)
    assert stage.engine.rows("s")[1] == ({"V_A": 1}, {"V_A": "y"})
    own = stage.engine.model_copy(
        update={"system_revisions": {"t": stage.engine.revisions.model_copy()}}
    )
    assert own.rows("t") == own.rows("s")


# ---------------------------------------------------------------------------------- their texts


def test_atoms_are_named_by_element_and_place() -> None:
    assert atom_numbers("H2", ETHANE) == [4]
    assert atom_numbers("C", ETHANE) == [1, 2]
    assert numbered("ATOMS=@C1,@H x@C", ETHANE, ",") == "ATOMS=1,3,4,5,6,7,8 x1,2"
    with pytest.raises(ValueError, match="no atom C3: the structure has 2 C"):
        atom_numbers("C3", ETHANE)


def test_colvars_input() -> None:
    settings = Colvars.model_validate(
        {
            "kind": "colvars",
            "variables": [
                {"kind": "distance", "groups": [["C1"], ["C2"]], "width": 0.1, "upper": 3},
                {"kind": "coordination", "groups": [["C"], ["H"]], "cutoff": 1.5, "width": 0.2},
                {"kind": "dihedral", "atoms": ["H1", "C1", "C2", "H4"], "width": 8, "name": "phi"},
            ],
            "metadynamics": {"height": 0.02, "every": 10, "bias_temperature": 3000},
        }
    )
    words = colvars_input(settings, ETHANE).split()
    for expected in (
        "name distance1 width 0.05 lowerBoundary 0.0 upperBoundary 10.0",
        "group1 { atomNumbers 1 } group2 { atomNumbers 2 }",
        "harmonicWalls { colvars distance1 upperWalls 3.0 forceConstant 0.025",
        "upperBoundary 12.0 expandBoundaries on coordNum { cutoff 1.5",
        "group2 { atomNumbers 3 4 5 6 7 8 }",
        "name phi width 4.0 dihedral { group1 { atomNumbers 3 } group2 { atomNumbers 1 }",
        "metadynamics { colvars distance1 coordination2 phi hillWeight 0.02 newHillFrequency 10",
        "gaussianSigmas 0.1 0.2 8.0 wellTempered on biasTemperature 3000.0",
    ):
        assert expected in " ".join(words)


@pytest.mark.parametrize(
    "text",
    [
        "LOAD FILE=evil.cpp",
        "PRINT FILE=/etc/passwd",
        "indexFile ../../x",
        "indexFile ~/x",
        'a "/x"',
    ],
)
def test_biases_that_could_do_harm_are_refused(text: str) -> None:
    assert refusal(f"ok: DISTANCE ATOMS=1,2\n{text}") is not None
    assert "line 2" in str(refusal(f"ok\n{text}"))


def test_biases_may_divide() -> None:
    assert refusal("customFunction (x / y) / 2\nPRINT FILE=COLVAR ARG=a,b") is None


def test_swaps_of_every_pair_with_seeds_of_their_own() -> None:
    settings = SwapMc.model_validate(
        {"kind": "swap-mc", "swaps": [["Cu", "Au"], ["Cu", "Ag"]], "every": 20, "attempts": 3}
    )
    first, second = swap_commands(settings, ("Ag", "Au", "Cu"), ROOM, 7)
    assert first.startswith("fix swap0 all atom/swap 20 3 ")
    assert first.endswith(" 300.0 types 3 2")
    assert second.endswith(" types 3 1")
    assert first.split()[6] != second.split()[6]


def test_files_of_a_potential_become_paths() -> None:
    settings = Potential(
        kind="potential", pair=("pair_style eam/alloy", "pair_coeff * * a.eam Cu"), files={}
    )
    found = pair_commands(settings, {"a.eam": Path("/bench/abc")})
    assert found == ["pair_style eam/alloy", 'pair_coeff * * "/bench/abc" Cu']


def test_words_of_a_template() -> None:
    text = (
        "variable NSTEPS equal V_NSTEPS\nvelocity all create V_TEMP 1 # warm\n"
        "fix 1 all npt temp V_TEMPS &\n  V_TEMP 0.1 iso V_PRES V_PRES 1\nfix dpgen_plm\n"
        "thermo 10\nrun ${NSTEPS} upto\n"
    )
    settings = Template(kind="template", lammps=text, plumed="x\n")
    md = Md(steps=200)
    parsed = parse(settings, standard_words(md, ROOM, 5), ({"V_TEMPS": 250}, {}), md)
    assert parsed.velocity == ("velocity all create 300.0 1",)
    nose_hoover = "fix 1 all npt temp 250 300.0 0.1 iso 5.0 5.0 1"
    assert " ".join(parsed.setup[1].split()) == nose_hoover
    assert (parsed.plumed, len(parsed.setup)) == (2, 2)
    with pytest.raises(ValueError, match=r"line 7: .*: must be 100, the value of md.steps"):
        parse(settings, {**standard_words(md, ROOM, 5)}, ({}, {}), Md(steps=100))


@pytest.mark.parametrize(
    "command",
    [
        "shell ls",
        "python f source x",
        "include x",
        "if 1 then 'shell ls'",
        "plugin load x",
        "jump x",
    ],
)
def test_templates_run_no_code_unless_the_worker_allows(command: str) -> None:
    settings = Template(kind="template", lammps=f"{command}\n")
    with pytest.raises(ValueError, match="is not allowed in a template"):
        parse(settings, {}, ({}, {}), Md())
    assert parse(settings, {}, ({}, {}), Md(), trusting=True).setup == (command,)


COMPOSED = {
    "a string": "variable s string /\nfix w all print 1 T file ${s}tmp${s}x",
    "an index": "variable s index a /\nfix w all print 1 T file ${s}tmp${s}x",
    "a continued line": "variable s &\n  string &\n  /",
    "another keyword": 'variable s string "a append "\nfix w all print 1 T file ${s}/tmp/x',
    "a whole argument": 'variable s index "append /tmp/x"\nfix w all print 1 T ${s}',
    "a blank in a format": "variable f format x %-8g\nfix w all print 1 T file ${f}/tmp/x",
    "a format of its own": "fix w all print 1 T file $(2*(1+1):%-8g)/tmp/x",
    "text in a format": "variable f format x /tmp/%g",
    "dots": "variable d string .\nfix w all print 1 T file ${d}./x",
    "nothing": 'variable n string ""\nfix w all print 1 T file ${n}/tmp/x',
    "quotes": 'fix w all print 1 T file """/tmp/x"""',
}


@pytest.mark.parametrize("text", COMPOSED.values(), ids=COMPOSED)
def test_no_path_is_composed_of_variables(text: str) -> None:
    """LAMMPS replaces variables before it splits a line into words."""
    settings = Template(kind="template", lammps=f"{text}\n")
    with pytest.raises(ValueError, match=r"line \d+: .*(value|format|outside)"):
        parse(settings, {}, ({}, {}), Md())


def test_no_path_comes_from_a_placeholder() -> None:
    settings = Template(kind="template", lammps="fix w all print 1 T file V_X\n")
    with pytest.raises(ValueError, match="outside the worker's folder"):
        parse(settings, {}, ({"V_X": "/tmp/x"}, {}), Md())


@pytest.mark.parametrize(
    "text",
    [
        "variable s string run-1.5\nfix w all print 1 T file ${s}.txt",
        "variable s index -1 0 +1.5e-3",
        "variable t string ${s}_$x",
        "variable f format x '%10.4f'\nfix w all print 1 \"T ${f}\" file x$(v_a*(2+1):%.3f)",
        "variable x equal v_a/2+vol\nfix 1 all nvt temp $x ${x} $(100.0*dt)",
        "fix a all ave/time 10 10 100 c_1 file temp/${s}.dat",
    ],
)
def test_words_and_numbers_in_variables_are_allowed(text: str) -> None:
    settings = Template(kind="template", lammps=f"{text}\n")
    assert parse(settings, {}, ({}, {}), Md()).setup == tuple(text.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        "PRINT ARG=d FILE=@replicas:/tmp/x,/tmp/y",
        "INCLUDE FILE=other.dat",
        "MOLINFO STRUCTURE=a.pdb PYTHON_BIN=sh",
        "g: GROUP ATOMS={@vmdexec:{x}}",
        "METATENSOR SCRIPT_PATH=m.pt",
        "colvar { torchAnn { modelFile m.pt } }",
        "scriptedColvarForces on",
    ],
)
def test_what_a_bias_may_not_name(text: str) -> None:
    assert refusal(text) is not None


@pytest.mark.parametrize("word", ["deepmd", "mliap/kk", "a$(1:%-5g)/tmp/x", "$x"])
def test_what_a_potential_may_not_name(word: str) -> None:
    settings = Potential(kind="potential", pair=(f"pair_style {word}", "pair_coeff * *"))
    with pytest.raises(ValueError, match="runs code or names a file outside"):
        pair_commands(settings, {})


@pytest.mark.skipif("DPSTREAM_TEST_DATA" not in os.environ, reason="DPSTREAM_TEST_DATA is not set")
def test_the_template_of_dp_gens_example() -> None:
    examples = Path(os.environ["DPSTREAM_TEST_DATA"]) / "dpgen/examples/run"
    folder = examples / "dp-lammps-enhance_sampling"
    job = json.loads((folder / "param.json").read_text())["model_devi_jobs"][0]
    matrix = {"lammps": job["rev_mat"]["lmp"], "plumed": job["rev_mat"]["plm"]}
    texts = {name: (folder / job["template"][key]).read_text() for name, key in TEXTS.items()}
    settings = Template.model_validate({"kind": "template", **texts, "revisions": matrix})
    md = Md(steps=20000, timestep=0.0005)
    (row,) = settings.rows("any")
    parsed = parse(settings, standard_words(md, ROOM, 1), row, md)
    assert [command.split()[:4] for command in parsed.setup if command.startswith("fix")] == [
        ["fix", "1", "all", "nvt"],
        ["fix", "2", "all", "momentum"],
        ["fix", "3", "all", "recenter"],
    ]
    assert parsed.plumed is not None
    assert parsed.setup[parsed.plumed].startswith("fix")
    assert "variable        NSTEPS          equal 20000" in parsed.setup
    assert refusal(revised(texts["plumed"], row[1])) is None
