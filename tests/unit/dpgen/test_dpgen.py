"""DP-GEN's param and machine files: every key mapped, not used for a reason, or refused with what
to do instead."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deepmd.utils.argcheck import normalize

from dpstream.dpgen.fp_styles import ELSEWHERE, STYLES
from dpstream.dpgen.gromacs import GROMACS_JOB, GROMACS_PARAM, SETTINGS
from dpstream.dpgen.key_page import markdown
from dpstream.dpgen.key_table import read, without_comments
from dpstream.dpgen.keys import JOBS, PARAM
from dpstream.dpgen.load import convert_file, named_after, spec_of
from dpstream.dpgen.machines.machine import MACHINE, PART, RESOURCES, TOP, read_machine
from dpstream.dpgen.param import Begun, Converted, Places, convert
from dpstream.dpgen.training import DEEPMD
from dpstream.inputs.check_training import check_training
from dpstream.inputs.reading.ase_files import read_dpdata
from dpstream.services.labeler.recipes import read_files
from dpstream.services.trainer.training_input import DEFAULTS, TrainingRun, build_input
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import LabelSettings, Spec, TrustLevels
from dpstream.shared.spec.engines import Pimd
from dpstream.shared.spec.inline_files import with_texts
from tests.support.command_line import run_command
from tests.support.dpgen import dpgen_keys, dpgen_methane

HERE = Places(Path("/home/me/run"), Path("/home/me/run"))


def converted(code: str | None = None, begun: Begun = Begun(), **changes: Any) -> Converted:
    values = without_comments(dpgen_methane.param(**changes))
    values = {key: value for key, value in values.items() if value is not ...}
    return convert(values, "methane", HERE, code, begun)


def spec(**changes: Any) -> Spec:
    return Spec.model_validate(converted(**changes).document)


def refusal(**changes: Any) -> str:
    with pytest.raises(SpecError) as refused:
        converted(**changes)
    return str(refused.value)


def job(**changes: Any) -> list[dict[str, Any]]:
    return [{**dpgen_methane.PARAM["model_devi_jobs"][0], **changes}]


# ------------------------------------------------------------------------------ nothing left out


def test_every_key_of_dpgen_is_in_the_tables() -> None:
    assert {key.name for key in PARAM} >= set(dpgen_keys.PARAM.split())
    assert {key.name for key in JOBS} >= set(dpgen_keys.JOB.split())
    for style, keys in dpgen_keys.STYLES.items():
        assert style in ELSEWHERE or {k.name for k in STYLES[style].keys} >= set(keys.split())
    for style, keys in dpgen_keys.FP_PARAMS.items():
        assert {key.name for key in STYLES[style].params} >= set(keys.split())
    assert {key.name for key in (*TOP, *PART)} >= set(dpgen_keys.MACHINE.split())
    assert {key.name for key in RESOURCES} >= set(dpgen_keys.RESOURCES.split())


@pytest.mark.parametrize(
    "table",
    [PARAM, JOBS, TOP, PART, MACHINE, RESOURCES, GROMACS_PARAM, GROMACS_JOB, SETTINGS],
)
def test_no_key_has_two_fates(table: Any) -> None:
    assert len({key.name for key in table}) == len(table)


def test_the_page_of_all_keys_is_what_the_tables_say() -> None:
    page = Path(__file__).parents[3] / "docs" / "dp-gen-keys.md"
    assert page.read_text() == markdown(), "run make schema"


def test_every_key_of_a_file_is_in_its_account() -> None:
    found = {line.key for line in converted().lines}
    keys = {key for key in dpgen_methane.PARAM if not key.startswith("_")}
    assert found == keys | {
        f"model_devi_jobs[].{key}"
        for key in dpgen_methane.PARAM["model_devi_jobs"][0]
        if key != "_idx"
    }


# ------------------------------------------------------------------------------------ as DP-GEN


def test_the_campaign_runs_as_dpgen_would() -> None:
    of = spec()
    assert of.mode == "lockstep"
    assert [(s.name, s.repeat, s.starts) for s in of.stages] == [
        ("job-000", False, "all"),
        ("job-001", False, "all"),
    ]
    assert of.stages[1].systems == ("sys-001",)
    assert of.stages[0].pressures == (), "nvt has no pressure"
    assert of.stages[0].md.steps == 100
    assert of.stages[0].md.every == 10
    assert of.stages[0].md.stop_after == 10, "a trajectory is never cut short"
    assert of.md.masses == {"H": 1, "C": 12}
    assert of.audit.per_round == 0
    assert of.selection.policy == "uniform"
    assert (of.selection.per_system, of.selection.min_per_system) == (3, 1)
    assert of.budget.labels == converted().labels == 6
    assert of.systems["sys-000"].structures == ("data/00000*/POSCAR",)
    assert of.initial.data == ("data/init",)


def test_two_stars_of_dp_gen_are_one_folder() -> None:
    of = spec(sys_configs=[["conf/**/POSCAR"], ["00001*/POSCAR"]])
    assert of.systems["sys-000"].structures == ("data/conf/*/POSCAR",)


def test_training_is_deepmd_kits_own_where_the_file_is_silent() -> None:
    of = spec()
    run = TrainingRun(type_map=of.type_map, systems=("data",), steps=100, seed=1, member=0)
    ours = normalize(build_input(of.training, run))
    theirs = dpgen_methane.param()["default_training_param"]
    theirs["training"] = {
        "numb_steps": 100,
        "disp_freq": 50,
        "training_data": {"systems": ["data"], "batch_size": 8},
    }
    theirs = normalize(theirs)
    for section in ("learning_rate", "loss"):
        assert ours[section] == theirs[section]
    for part in ("descriptor", "fitting_net"):
        found, wanted = ours["model"][part], theirs["model"][part]
        assert {**found, "seed": 0, "type": 0} == {**wanted, "seed": 0, "type": 0}
    assert ours["training"]["numb_steps"] == 100
    assert ours["training"]["training_data"]["batch_size"] == 8
    assert ours["optimizer"]["adam_beta2"] == 0.999


def test_deepmd_kits_defaults_are_what_it_says() -> None:
    """Every default of ours that could show through has its counterpart."""
    bare = {
        "model": {"type_map": ["H"], "descriptor": {"type": "se_e2_a"}, "fitting_net": {}},
        "learning_rate": {"type": "exp", "start_lr": 1e-3},
        "optimizer": {"type": "Adam"},
        "loss": {},
        "training": {"training_data": {"systems": ["x"]}, "numb_steps": 1},
    }
    own = normalize(bare)
    for part in ("descriptor", "fitting_net"):
        assert DEFAULTS["model"][part].keys() <= DEEPMD["model"][part].keys()
        assert DEEPMD["model"][part].items() <= own["model"][part].items()
    for section in ("optimizer", "loss"):
        assert DEFAULTS[section].keys() <= DEEPMD[section].keys()
        assert DEEPMD[section].items() <= own[section].items()
    assert DEEPMD["learning_rate"].items() <= own["learning_rate"].items()


def test_inputs_of_deepmd_kit_0_have_no_sections() -> None:
    flat = {"use_smooth": True, "sel_a": [16, 4], "rcut": 5, "rcut_smth": 0.5, "stop_batch": 400}
    flat |= {"filter_neuron": [10, 20], "filter_resnet_dt": False, "n_axis_neuron": 12}
    flat |= {"n_neuron": [30, 30], "resnet_dt": True, "start_lr": 0.002, "decay_steps": 200}
    flat |= {"decay_rate": 0.95, "numb_test": 4, "batch_size": 1, "systems": [], "seed": 0}
    flat |= {"start_pref_e": 0.02, "limit_pref_e": 2, "type_fitting_net": False}
    flat |= {"disp_file": "lcurve.out", "disp_freq": 100, "save_freq": 100, "save_ckpt": "x"}
    flat |= {"disp_training": True, "time_training": True}
    found = converted(default_training_param=flat)
    of = Spec.model_validate(found.document)
    check_training(of)
    assert of.training.min_steps == of.training.max_steps == 400
    model = of.training.input["model"]
    assert model["descriptor"]["sel"] == [16, 4]
    assert model["descriptor"]["neuron"] == [10, 20]
    assert model["fitting_net"]["neuron"] == [30, 30]
    assert of.training.input["learning_rate"]["start_lr"] == 0.002
    assert of.training.input["loss"]["limit_pref_e"] == 2
    assert any("converted from the format of DeePMD-kit 0.x" in t for t in found.differences)


def test_warm_starts_are_those_of_training_reuse() -> None:
    training = spec(
        training_reuse_iter=1,
        training_reuse_stop_batch=50,
        training_reuse_start_lr=1e-4,
        training_reuse_start_pref_e=0.1,
        training_reuse_old_ratio=0.2,
    ).training
    assert training.warm == 0.5
    assert training.warm_start_lr == 1e-4
    assert training.warm_input == {"loss": {"start_pref_e": 0.1}}
    assert training.cold_every > 2, "no cold starts between"
    run = TrainingRun(type_map=("H",), systems=("x",), steps=50, seed=1, member=0, warm=True)
    document = build_input(training, run)
    assert document["loss"]["start_pref_e"] == 0.1
    assert document["learning_rate"]["start_lr"] == 1e-4
    assert spec(training_init_model=True).training.warm == 1.0
    assert spec().training.warm == 0.0


def test_an_input_for_each_member_and_activation_functions() -> None:
    inputs = [dpgen_methane.param()["default_training_param"] for _ in range(2)]
    inputs[1]["model"]["descriptor"]["neuron"] = [5, 10]
    functions = [["tanh", "tanh"], ["gelu", "relu"]]
    of = spec(default_training_param=inputs, model_devi_activation_func=functions)
    check_training(of)
    own = of.training.member_input[1]["model"]
    assert own["descriptor"]["neuron"] == [5, 10]
    assert own["fitting_net"]["activation_function"] == "relu"
    assert "1 inputs for 2 models" in refusal(default_training_param=inputs[:1])


def test_given_models_and_a_table_of_repulsion() -> None:
    given = dpgen_methane.param()["default_training_param"]
    given["model"] |= {"use_srtab": "zbl.tab", "sw_rmin": 0.6, "sw_rmax": 1.0, "smin_alpha": 0.1}
    training = spec(default_training_param=given, srtab_file_path="tables/zbl.tab").training
    assert training.repulsion is not None
    assert (training.repulsion.table, training.repulsion.outer) == ("tables/zbl.tab", 1.0)
    assert "use_srtab" not in training.input["model"]
    assert refusal(default_training_param=given).startswith("srtab_file_path: missing")
    training = spec(training_finetune_model=["a.pb", "b.pb"]).training
    assert training.init is not None
    assert (training.init.model, training.init.how) == (("a.pb", "b.pb"), "finetune")


def test_models_of_the_first_iteration(tmp_path: Path) -> None:
    """One for each member, found by a pattern; only where DP-GEN would begin from them."""
    for number in range(2):
        (tmp_path / f"old/{number:03d}").mkdir(parents=True)
    here = {"training_iter0_model_path": f"{tmp_path}/old/00[01]"}
    training = spec(**here, training_init_model=True).training
    assert training.init is not None
    assert training.init.how == "init-model"
    assert training.init.model == tuple(f"{tmp_path}/old/{n:03d}/model.ckpt" for n in range(2))
    assert (training.warm, training.warm_start_lr) == (1.0, 0.001)
    assert spec(**here, training_reuse_iter=0).training.init == training.init
    idle = converted(**here)
    assert "init" not in idle.document["training"]
    assert any("not used without training_init_model" in line for line in idle.differences)
    one = {"training_iter0_model_path": [f"{tmp_path}/old/000"], "training_init_model": True}
    assert refusal(**one) == (
        "training_iter0_model_path: 1 folders for 2 models; give one for each"
    )
    both = {**here, "training_init_model": True, "training_finetune_model": ["a.pb", "b.pb"]}
    assert refusal(**both).startswith("training_iter0_model_path: another key already gives models")


@pytest.mark.parametrize(("use", "name"), [(1, "fparam"), (2, "aparam")])
def test_electron_temperatures(use: int, name: str) -> None:
    """A pair is atoms and electrons; of one number both are it."""
    jobs = job(temps=[50, [100, 5000]])
    found = spec(use_ele_temp=use, model_devi_jobs=jobs)
    assert found.stages[0].temperatures == (50, 100)
    assert found.stages[0].electron_temperatures == (50, 5000)
    assert found.labels.electron_temperature == name
    assert getattr(found.systems["sys-000"], name) == (50,)
    assert found.training.parameters == {"fparam": use == 1, "aparam": use == 2}
    given = [dpgen_methane.param()["default_training_param"]] * 2
    several = spec(
        use_ele_temp=use, model_devi_jobs=jobs, default_training_param=given, numb_models=2
    )
    assert several.training.parameters == found.training.parameters


def test_beads() -> None:
    found = spec(model_devi_jobs=job(nbeads=4, nsteps=40, trj_freq=10))
    assert found.stages[0].engine == Pimd(kind="pimd", beads=4)
    assert found.stages[0].frames == found.selection.per_trajectory == 16
    assert "a multiple of" in refusal(model_devi_jobs=job(nbeads=4, nsteps=45, trj_freq=10))


def test_levels_by_system_and_by_job() -> None:
    own = {"model_devi_f_trust_lo": 0.2, "model_devi_f_trust_hi": {"0": 0.5, "1": 0.5}}
    levels = {
        "model_devi_f_trust_lo": [0.0, 0.05],
        "model_devi_f_trust_hi": {"0": 0.15, "1": 0.1},
    }
    first, second = spec(
        model_devi_jobs=[*job(sys_idx=[0, 1]), *job(sys_idx=["0-2"], **own)], **levels
    ).stages
    assert {name: (own.low, own.high) for name, own in first.system_trust.items()} == {
        "sys-000": (0.0, 0.15),
        "sys-001": (0.05, 0.1),
    }
    assert second.systems == ("sys-000", "sys-001")
    assert second.trust == TrustLevels(low=0.2, high=0.5)
    assert second.system_trust == {}
    assert spec().stages[0].trust == spec().stages[1].trust
    assert "no level for system 1" in refusal(model_devi_f_trust_lo=[0.1])


def test_virial_and_relative_levels() -> None:
    levels = (
        spec(
            model_devi_v_trust_lo=0.1,
            model_devi_v_trust_hi=0.3,
            use_relative=True,
            epsilon=0.5,
            use_relative_v=True,
            epsilon_v=0.2,
        )
        .stages[0]
        .trust
    )
    assert levels is not None
    assert (levels.low_v, levels.high_v, levels.relative, levels.relative_v) == (0.1, 0.3, 0.5, 0.2)
    assert refusal(use_relative=True) == "epsilon: missing; use_relative requires it"


def test_an_adaptive_lower_level_draws_from_the_largest_deviations() -> None:
    found = spec(model_devi_adapt_trust_lo=True, model_devi_perc_candi_f=5, fp_task_max=4)
    assert found.stages[0].trust == TrustLevels(low=0, high=100)
    assert (found.selection.pool_size, found.selection.pool_share) == (10, 0.05)
    fixed = spec(model_devi_numb_candi_f=7)
    assert (fixed.selection.pool_size, fixed.stages[0].trust) == (
        None,
        TrustLevels(low=0.05, high=100),
    )
    virial = {"model_devi_v_trust_lo": 0.3, "model_devi_v_trust_hi": 0.2}
    assert spec(model_devi_adapt_trust_lo=True, **virial).stages[0].trust == TrustLevels(
        low=0, high=100, low_v=0.1, high_v=0.2
    )
    adapt = {"model_devi_adapt_trust_lo": True}
    assert "fp_accurate_threshold: not" in refusal(**adapt, fp_accurate_threshold=0.9)
    assert "model_devi_numb_candi_f: 0" in refusal(**adapt, model_devi_numb_candi_f=0)
    assert "ranked by their force deviation" in refusal(**adapt, model_devi_numb_candi_v=5)


def test_thresholds_and_bad_boxes() -> None:
    rules = spec(
        fp_accurate_threshold=0.95,
        fp_accurate_soft_threshold=0.85,
        fp_skip_bad_box="length_ratio:3;tilt_ratio:0.7;min_distance:0.8",
    ).selection
    assert (rules.none_above, rules.fewer_above) == (0.95, 0.85)
    assert rules.min_distance == {"H-H": 0.8, "H-C": 0.8, "C-C": 0.8}
    assert rules.max_skew == 0.7
    said = converted(fp_skip_bad_box="length_ratio:3").differences
    assert any(text.startswith("fp_skip_bad_box: length_ratio: not used") for text in said)


def test_shuffled_structures() -> None:
    found = converted(shuffle_poscar=True)
    assert [system["shuffle"] for system in found.document["systems"].values()] == [True, True]
    assert any("DP-GEN does it again in each job" in text for text in found.differences)
    assert not spec().systems["sys-000"].shuffle


def test_clusters_are_cut_around_the_worst_atom() -> None:
    gaussian: dict[str, Any] = {"fp_style": "gaussian", "fp_params": {"keywords": "force pbe/sto"}}
    clusters = {**gaussian, "use_clusters": True, "cluster_cutoff": 5.0, "cluster_minify": True}
    found = converted(**clusters)
    assert found.document["selection"]["clusters"] == {"radius": 5.0}
    assert found.document["labels"]["multiplicity"] == 0
    other = converted(code="tblite", **clusters).document["labels"]
    assert other == {"code": "tblite", "multiplicity": 0}, "a broken bond leaves odd electrons"
    assert converted(code="qe", **clusters).document["labels"] == {"code": "qe"}
    assert any("molecules are kept whole" in text for text in found.differences)
    Spec.model_validate(found.document)
    assert spec(**gaussian).selection.clusters is None
    assert "cluster_cutoff: missing" in refusal(**gaussian, use_clusters=True)
    assert "cluster_cutoff_hard: 7.0: molecules" in refusal(**clusters, cluster_cutoff_hard=7.0)


def test_a_round_takes_as_many_labels_as_are_asked_for() -> None:
    found = converted(fp_task_max=2000)
    assert found.labels == found.document["selection"]["per_round"] * 2 == 4000


def test_barostats_molecules_and_formats() -> None:
    of = spec(model_devi_jobs=job(ensemble="npt-t", press=[1.0, 10.0], dt=0.001, taut=0.2))
    assert of.stages[0].md.ensemble == "npt-tri"
    assert of.stages[0].pressures == (1.0, 10.0)
    assert (of.stages[0].md.timestep, of.stages[0].md.tau_t) == (0.001, 0.2)
    alone = spec(model_devi_nopbc=True, sys_format="lammps/lmp", model_devi_skip=20)
    assert alone.systems["sys-000"].periodic is False
    assert alone.systems["sys-000"].format == "lammps/lmp"
    assert alone.md.skip == 20
    assert "not allowed with model_devi_nopbc" in refusal(
        model_devi_nopbc=True, model_devi_jobs=job(ensemble="npt", press=[1.0])
    )


# ---------------------------------------------------------------------------------------- labels

PP = {"fp_pp_path": "pp", "fp_pp_files": ["h.upf", "c.upf"], "fp_incar": ...}
BY_ELEMENT = {"potentials": {"H": "h.upf", "C": "c.upf"}}
TRAVELLING = {"pseudopotentials": {"H": "pp/h.upf", "C": "pp/c.upf"}}


@pytest.mark.parametrize(
    ("style", "changes", "settings"),
    [
        ("vasp", {"fp_incar": "INCAR"}, {**BY_ELEMENT, "incar": {"file": "INCAR"}}),
        ("vasp", {"user_fp_params": {"KSPACING": 0.2}}, {**BY_ELEMENT, "incar": {"KSPACING": 0.2}}),
        (
            "pwscf",
            {
                "user_fp_params": {
                    "control": {"calculation": "scf", "pseudo_dir": "./", "etot_conv_thr": 1e-5},
                    "system": {"ecutwfc": 110, "nat": 192, "ntyp": 1, "input_dft": "revpbe"},
                    "electrons": {"conv_thr": 1e-8, "mixing_beta": 0.5},
                    "kspacing": 0.2,
                }
            },
            {
                **TRAVELLING,
                "kspacing": 0.2,
                "control": {"etot_conv_thr": 1e-5},
                "ecutwfc": 110,
                "system": {"input_dft": "revpbe"},
                "conv_thr": 1e-8,
                "electrons": {"mixing_beta": 0.5},
            },
        ),
        (
            "pwscf",
            {"fp_params": {"ecut": 90, "kspacing": 0.1, "smearing": "mp:1", "sigma": 0.02}},
            {
                **TRAVELLING,
                "ecutwfc": 90,
                "kspacing": 0.1,
                "smearing": "methfessel-paxton",
                "degauss": 0.02,
            },
        ),
        (
            "abacus",
            {
                "fp_orb_files": ["h.orb", "c.orb"],
                "user_fp_params": {"ecutwfc": 80, "ntype": 2, "gamma_only": 1},
                "k_points": [3, 3, 3, 0, 0, 0],
            },
            {
                **BY_ELEMENT,
                "orbitals": {"H": "h.orb", "C": "c.orb"},
                "input": {"ecutwfc": 80, "gamma_only": 1},
                "kpoints": [3, 3, 3],
            },
        ),
        (
            "siesta",
            {"fp_params": {"ecut": 300, "kspacing": 0.5}},
            {
                **BY_ELEMENT,
                "fdf": {
                    "XC.functional": "GGA",
                    "XC.authors": "PBE",
                    "MeshCutoff": "300 Ry",
                    "kgrid.Cutoff": "6.283185 Ang",
                },
            },
        ),
        ("pwmat", {"fp_incar": "etot"}, {**BY_ELEMENT, "etot_input": {"file": "etot"}}),
    ],
)
def test_styles_with_a_potential_for_each_element(
    style: str, changes: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    labels = converted(**{**PP, "fp_style": style, **changes}).document["labels"]
    assert labels["settings"] == settings
    for name in ("INCAR", "etot", "pp/h.upf", "pp/c.upf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("KSPACING = 0.2\n")
    assert taken(labels, tmp_path)


def taken(labels: dict[str, Any], folder: Path) -> bool:
    """Whether the labeling code takes these settings; SpecError where it does not."""
    document = with_texts({"labels": labels}, folder / "campaign.yaml")
    return read_files(LabelSettings.model_validate(document["labels"]), folder) is not None


NO_PP: dict[str, Any] = dict.fromkeys(("fp_pp_path", "fp_pp_files", "fp_incar"), ...)


def test_styles_without_potentials(tmp_path: Path) -> None:
    kinds = {"KIND": {"_": ["C", "H"], "POTENTIAL": ["GTH-PBE-q4", "GTH-PBE-q1"]}}
    keywords = {"FORCE_EVAL": {"DFT": {"MGRID": {"CUTOFF": 400}}, "SUBSYS": kinds}}
    cp2k = converted(fp_style="cp2k", user_fp_params=keywords, **NO_PP).document["labels"]
    assert cp2k["settings"]["keywords"]["FORCE_EVAL"]["SUBSYS"]["KIND"] == [
        {"_": "C", "POTENTIAL": "GTH-PBE-q4"},
        {"_": "H", "POTENTIAL": "GTH-PBE-q1"},
    ]
    own = converted(fp_style="cp2k", external_input_path="cp2k/template.inp", **NO_PP)
    assert own.document["labels"]["settings"] == {"template": {"file": "cp2k/template.inp"}}
    params = {"keywords": "force b3lyp/6-31g**", "nproc": 4, "charge": 1, "multiplicity": 2}
    gaussian = converted(fp_style="gaussian", fp_params=params, **NO_PP).document["labels"]
    assert gaussian["settings"] == {"keywords": "force b3lyp/6-31g**"}
    assert (gaussian["charge"], gaussian["multiplicity"]) == (1, 2)
    params = {
        "input_fmt": "vasp/poscar",
        "input_fn": "POSCAR",
        "output_fmt": "deepmd/npy",
        "output_fn": "data",
    }
    custom = converted(fp_style="custom", fp_params=params, **NO_PP).document["labels"]
    assert custom["settings"]["output"] == {"format": "deepmd/npy", "file": "data"}
    for labels in (cp2k, gaussian, custom):
        assert taken(labels, tmp_path)


def test_old_parameters_of_vasp_become_an_incar() -> None:
    params = {"ecut": 400, "ediff": 1e-6, "kspacing": 0.2, "smearing": "mp:2", "sigma": 0.1}
    more = {"npar": 4, "metagga": "SCAN", "user_vasp_params": {"gga": "PS"}}
    incar = converted(**{**PP, "fp_params": {**params, **more}}).document["labels"]["settings"][
        "incar"
    ]
    wanted = {"ENCUT": 400, "EDIFF": 1e-6, "KSPACING": 0.2, "ISMEAR": 2, "SIGMA": 0.1, "NPAR": 4}
    assert wanted.items() <= incar.items()
    assert (incar["METAGGA"], incar["GGA"], incar["NSW"]) == ("SCAN", "PS", 0)


def test_a_null_engine_is_the_default() -> None:
    assert converted(model_devi_engine=None).document == converted().document


def test_another_code_may_label_instead() -> None:
    found = converted(code="tblite")
    assert found.document["labels"] == {"code": "tblite"}
    lines = {line.key: line for line in found.lines}
    assert lines["fp_incar"].words == "--code tblite computes the labels"


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"numb_model": 4}, "numb_model: unknown key; did you mean 'numb_models'?"),
        ({"fp_incarr": "x"}, "fp_incarr: unknown key; did you mean 'fp_incar'? If it is a comment"),
        ({"model_devi_jobs": job(temp=[1])}, "model_devi_jobs.0.temp: unknown key; did you mean"),
        ({"model_devi_engine": "amber", "parm7": []}, "model_devi_engine: 'amber': DPRc's labels"),
        (
            {"model_devi_engine": "calypso", "vsc": True},
            "offer its structures: dpstream propose --",
        ),
        ({"model_devi_engine": "gromacs", "gromacs_settings": {}}, "sys_configs.0: 00000*"),
        ({"model_devi_engine": "lmp"}, "model_devi_engine: 'lmp': must be lammps or gromacs"),
        ({"fp_style": "amber/diff", "high_level": "x"}, "(DPRc) are not supported; continue with"),
        ({"fp_style": "abacus", "fp_dpks_descriptor": "jle.orb"}, "labels of DeePKS are not"),
        (
            {"default_training_param": {"stop_batch": 9}},
            "0.x, which cannot be converted here ('use_",
        ),
        ({"use_ele_temp": 3}, "use_ele_temp: 3: "),
        ({"model_devi_jobs": job(temps=[[50, 5e3]])}, "model_devi_jobs.0.temps: [(50.0, 5000.0)]"),
        ({"training_iter0_model_path": ["x"], "training_init_model": True}, "'x': no such file"),
        ({"model_devi_jobs": []}, "model_devi_jobs: []: "),
        ({"model_devi_jobs": {}}, "model_devi_jobs: {}: must be a list of mappings"),
        ({"model_devi_jobs": job(sys_idx=[5])}, "model_devi_jobs.0.sys_idx: 5: sys_configs has"),
        ({"model_devi_jobs": job(sys_idx=[0, 0])}, "lists a system twice"),
        ({"model_devi_jobs": job(sys_idx=["a-b"])}, "must be a number or a range"),
        ({"model_devi_jobs": job(ensemble="nvz")}, "model_devi_jobs.0.ensemble: 'nvz': must be"),
        ({"fp_style": "vsap"}, "fp_style: 'vsap': did you mean 'vasp'?"),
        ({"fp_style": "cpx"}, "fp_style: 'cpx': Car–Parrinello"),
        ({"use_ele_temp": 1, "fp_nbands_esti_data": "x"}, "NBANDS is not estimated for each frame"),
        ({"fp_pp_files": ["POTCAR"]}, "fp_pp_files: 1 files for 2 elements"),
        ({"fp_incar": ...}, "fp_incar: missing; fp_style requires fp_incar or user_fp_params"),
        ({"mass_map": [1]}, "mass_map: 1 masses for 2 elements"),
        ({"numb_models": "four"}, "numb_models: 'four': must be a valid integer"),
        ({"fp_task_max": ...}, "fp_task_max: missing"),
        ({"default_training_param": {}}, "default_training_param.training.numb_steps: missing"),
        ({"train_backend": "pt-expt"}, "train_backend: 'pt-expt': must be one of"),
        ({"fp_skip_bad_box": "height:2"}, "fp_skip_bad_box: 'height': must be one of"),
        (
            {"training_reuse_iter": 1, "training_reuse_numb_steps": 200},
            "training_reuse_numb_steps: 200: must not exceed numb_steps (100)",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    said = refusal(**changes)
    assert words in said
    assert "\n" not in said


# --------------------------------------------------------------------------------------- machine


def test_the_oldest_machine_files_have_no_parts() -> None:
    machines, lines = read_machine(
        {
            "deepmd_path": "/sw/deepmd",
            "train_machine": {"machine_type": "slurm", "password": "hunter2"},
            "train_resources": {"numb_node": 1, "task_per_node": 8, "source_list": ["/sw/env"]},
            "fp_command": "vasp_std",
            "fp_group_size": 1,
            "fp_resources": {"module_list": ["mpi", "vasp"], "with_mpi": 1},
        }
    )
    assert [(each.where, each.service, each.command) for each in machines] == [
        ("train", "trainer", None),
        ("fp", "labeler", "vasp_std"),
    ]
    assert machines[0].resources == {
        "number_node": 1,
        "cpu_per_node": 8,
        "source_list": ["/sw/env"],
    }
    assert machines[1].resources["group_size"] == 1
    assert "hunter2" not in str(lines)


def test_unknown_keys_of_machines_are_refused() -> None:
    part = {**dpgen_methane.PART, "resources": {"cpu_per_nod": 4}}
    with pytest.raises(SpecError, match=r"fp.resources.cpu_per_nod: .*mean 'cpu_per_node'"):
        read_machine({"fp": part})
    with pytest.raises(SpecError, match="fp: str: must be a mapping"):
        read_machine({"fp": "vasp"})


def test_keys_that_dpgen_ignores_are_in_the_account() -> None:
    part = {**dpgen_methane.PART, "resources": {"group_size": 1, "job_name": "train"}}
    lines = read_machine({"fp": part, "lmp_command": "lmp"})[1]
    (line,) = (line for line in lines if line.key == "fp.resources.job_name")
    assert (line.fate, line.words) == ("ignored", "DP-GEN ignores it, too")


# -------------------------------------------------------------------------------------- the files


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command line: its exit status and what it said."""
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words: object) -> tuple[int, str]:
        status, out, err = run_command(monkeypatch, capsys, *words)
        return status, out + err

    return called


Call = Callable[..., tuple[int, str]]


def test_import_writes_a_spec_and_tells_all(tmp_path: Path, call: Call) -> None:
    path = dpgen_methane.write_files(tmp_path, dpgen_methane.param())
    target = tmp_path / "elsewhere" / "campaign.yaml"
    target.parent.mkdir()
    words = ("import", path, tmp_path / "machine.json", "-o", target)
    status, said = call(*words)
    assert status == 0
    assert "at most 6 labels: 2 jobs, each explored once" in said
    assert "machine.json: 3 pools of workers; --fleet FILE writes them" in said
    written = yaml.safe_load(target.read_text())
    assert written["systems"]["sys-000"]["structures"] == [str(tmp_path / "data/00000*/POSCAR")]
    Spec.model_validate(written)
    status, said = call(*words)
    assert status == 2
    assert "already exists; give another file name" in said


def test_yaml_will_do_and_names_come_from_folders(tmp_path: Path) -> None:
    folder = tmp_path / "CH4 (2x2)"
    folder.mkdir()
    path = folder / "param.yaml"
    path.write_text(yaml.safe_dump(dpgen_methane.param()))
    assert named_after(path) == "ch4-2x2"
    assert spec_of(convert_file(path, folder, None, None, None), path).name == "ch4-2x2"


def test_what_deepmd_kit_does_not_know_is_named(tmp_path: Path) -> None:
    document = dpgen_methane.param()
    document["default_training_param"]["model"]["fitting_net"]["neurons"] = 1
    path = dpgen_methane.write_files(tmp_path, document)
    with pytest.raises(SpecError, match=r"param.json: default_training_param: .*`neurons`"):
        spec_of(convert_file(path, tmp_path, None, None, None), path)


def test_a_spec_of_ours_takes_neither_machine_nor_code(tmp_path: Path, call: Call) -> None:
    ours = tmp_path / "campaign.yaml"
    ours.write_text("{name: small, systems: {}, stages: []}")
    dpgen_methane.write_files(tmp_path, dpgen_methane.param())
    machine = tmp_path / "machine.json"
    for words, why in (
        (("run", ours, machine), "a machine file is allowed only with DP-GEN's param.json"),
        (("validate", ours, "--code", "tblite"), "--code: allowed only with DP-GEN's param.json"),
        (("import", ours, "-o", tmp_path / "x"), "not a param.json of `dpgen run`"),
        (("import", machine, "-o", tmp_path / "x"), f"dpstream run param.json {machine}"),
        (("run", machine), f"dpstream run param.json {machine}"),
    ):
        status, said = call(*words)
        assert status == 2
        assert why in said


# ------------------------------------------------------------------------------- a run begun before


def a_run(folder: Path, record: str) -> Path:
    for name in ("iter.000000/02.fp/data.000/C1H4", "iter.000001/02.fp/data.001/C1H4"):
        (folder / name).mkdir(parents=True)
        (folder / name / "type.raw").write_text("0\n")
    (folder / "iter.000002/02.fp/task.000.000000").mkdir(parents=True)
    (folder / "record.dpgen").write_text(record)
    return dpgen_methane.write_files(folder, dpgen_methane.param())


def test_a_run_goes_on_after_its_last_whole_iteration(tmp_path: Path) -> None:
    path = a_run(tmp_path, "".join(f"0 {step}\n" for step in range(9)) + "1 0\n1 1\n")
    found = convert_file(path, tmp_path, None, None, tmp_path)
    assert [stage["name"] for stage in found.document["stages"]] == ["job-001"]
    assert found.document["initial"]["data"] == [
        "data/init",
        "iter.000000/02.fp/data.000",
        "iter.000001/02.fp/data.001",
    ]
    assert list(found.document["systems"]) == ["sys-001"]
    assert found.labels == 3
    assert any("1 calculations are not collected" in text for text in found.differences)


def test_a_run_that_is_over_or_no_run_is_refused(tmp_path: Path) -> None:
    path = a_run(tmp_path, "".join(f"{i} {step}\n" for i in (0, 1) for step in range(9)))
    with pytest.raises(SpecError, match="all 2 jobs are done; add to model_devi_jobs"):
        convert_file(path, tmp_path, None, None, tmp_path)
    (tmp_path / "record.dpgen").unlink()
    with pytest.raises(SpecError, match=r"--from-run: .*record.dpgen: cannot be read"):
        convert_file(path, tmp_path, None, None, tmp_path)


# -------------------------------------------------------------------------------------- real files

DATA = os.environ.get("DPSTREAM_TEST_DATA")
REAL: dict[str, str | None] = {
    "examples/run/ch4/param.json": "fp_pp_files: 1 files for 2 elements",
    "examples/run/dp-lammps-enhance_sampling/param.json": None,
    "examples/run/dp2.x-lammps-ABACUS-pw/methane/param.json": None,
    "examples/run/dp2.x-lammps-cp2k/methane/param-ch4.json": None,
    "examples/run/dp2.x-lammps-gaussian/param_C4H16N4_deepmd-kit-2.0.1.json": None,
    "examples/run/dp2.x-lammps-pwscf/Al/param_al_all_gpu-deepmd-kit-2.x.json": None,
    "examples/run/dp2.x-lammps-vasp/Al/param_al_all_gpu-deepmd-kit-2.x.json": None,
    "examples/run/dp2.x-lammps-vasp/CH4/param_CH4_deepmd-kit-2.x.json": None,
    "tests/generator/param-methane-abacus.json": None,
    "tests/generator/param-mg-vasp-multi-trust.json": "sel: 1 numbers [90] for the 2 elements",
    "tests/generator/param-mg-vasp.json": "sel: 1 numbers [90] for the 2 elements",
    "tests/generator/param-pyridine-cp2k.json": None,
}
"""DP-GEN's own files, and what is said of those that cannot be taken over whole."""


needs_data = pytest.mark.skipif(
    DATA is None, reason="DPSTREAM_TEST_DATA names no folder of recorded data"
)


@needs_data
@pytest.mark.parametrize("name", [name for name, why in REAL.items() if why is None])
def test_dpgens_own_param_files(name: str) -> None:
    path = Path(DATA or "", "dpgen", name)
    found = convert_file(path, path.parent, None, None, None)
    of, values = spec_of(found, path), read(path)
    assert len(of.stages) == len(values["model_devi_jobs"])
    assert {line.key for line in found.lines} >= values.keys()
    assert of.training.members == values["numb_models"]


@needs_data
@pytest.mark.parametrize(("name", "why"), [row for row in REAL.items() if row[1] is not None])
def test_dpgens_own_param_files_that_ask_for_more(name: str, why: str) -> None:
    path = Path(DATA or "", "dpgen", name)
    with pytest.raises(SpecError, match=re.escape(why)):
        spec_of(convert_file(path, path.parent, None, None, None), path)


@needs_data
def test_dpgens_own_machine_files() -> None:
    files = sorted(Path(DATA or "", "dpgen").rglob("machine*.json"))
    assert len(files) == 6
    for path in files:
        machines, lines = read_machine(read(path))
        assert [machine.service for machine in machines] == ["trainer", "explorer", "labeler"]
        assert machines[2].command, path
        assert lines
        text = json.dumps([line.value for line in lines])
        assert "xxx" not in text, "hosts, users and passwords stay in the file"


def test_structures_in_a_format_of_dpdata(tmp_path: Path) -> None:
    import dpdata

    dpgen_methane.write_structures(tmp_path)
    source = dpdata.System(str(tmp_path / "000000" / "POSCAR"), fmt="vasp/poscar")
    source.to("lammps/lmp", str(tmp_path / "conf.lmp"))
    names = source.data["atom_names"]
    atoms = read_dpdata(tmp_path / "conf.lmp", "lammps/lmp", names)
    assert sorted(atoms[0].get_chemical_symbols()) == ["C", "H", "H", "H", "H"]
    with pytest.raises(SpecError, match="cannot be read as lammps/lmp"):
        read_dpdata(tmp_path / "000000" / "POSCAR", "lammps/lmp", names)
