"""Tables of the keys of `dpgen run` (DP-GEN 0.14), except those of fp_styles and machine files.

`docs/dp-gen-keys.md` is generated from these tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from dpstream.dpgen.key_table import Key, ignored, mapped, refused, unused

NO_VIRIAL = "candidates are ranked by their force deviation; set it to 0"
LOGGED = "complete trajectories are not stored"

DATA: tuple[Key, ...] = (
    mapped("type_map", "type_map"),
    mapped("mass_map", "md.masses; auto: standard masses"),
    mapped("use_ele_temp", "labels.electron_temperature; 1: fparam, 2: aparam"),
    mapped("init_data_prefix", "prepended to initial.data"),
    mapped("init_data_sys", "initial.data"),
    mapped("sys_format", "systems.*.format, a dpdata format; not needed for vasp/poscar"),
    mapped(
        "init_batch_size",
        "training.input.training.training_data.batch_size, if all systems have the same",
    ),
    mapped("sys_configs_prefix", "prepended to systems.*.structures"),
    mapped("sys_configs", "systems.sys-000 … by index, if a job explores them; globs are kept"),
    mapped("sys_batch_size", "as init_batch_size"),
    unused(
        "sys_charges",
        "DP-GEN uses it with gromacs only; set systems.*.label.charge in the imported spec",
    ),
)

TRAINING: tuple[Key, ...] = (
    refused("mlp_engine", "only dp (DeePMD-kit)", "dp"),
    mapped("numb_models", "training.members"),
    unused("train_param", "each training writes its own input.json"),
    mapped("train_backend", "training.backend"),
    unused("model_format", "follows from the backend"),
    mapped(
        "default_training_param",
        "training.input, with DeePMD-kit's defaults instead of dpstream's; numb_steps "
        "(stop_batch): training.min_steps = max_steps; a list: training.member_input",
    ),
    mapped(
        "training_iter0_model_path",
        "training.init, how: init-model; not used without training_init_model",
    ),
    mapped("training_init_frozen_model", "training.init, how: init-frz-model"),
    mapped("training_finetune_model", "training.init, how: finetune"),
    mapped("training_init_model", "training.warm: 1, no cold starts; false: always from scratch"),
    mapped("training_reuse_iter", "training.warm, from the second training on"),
    unused("training_reuse_old_ratio", "old and new frames have equal weight"),
    mapped("training_reuse_numb_steps", "training.warm, as a fraction of numb_steps"),
    mapped("training_reuse_stop_batch", "as training_reuse_numb_steps"),
    mapped("training_reuse_start_lr", "training.warm_start_lr"),
    ignored("training_reuse_decay_steps", "DP-GEN ignores it, too"),
    mapped("training_reuse_start_pref_e", "training.warm_input.loss.start_pref_e"),
    mapped("training_reuse_start_pref_f", "training.warm_input.loss.start_pref_f"),
    mapped("model_devi_activation_func", "training.member_input, for both networks of each member"),
    unused("dp_train_skip_neighbor_stat", "the neighbour statistics take about a second"),
    mapped("dp_compress", "training.compress"),
    mapped(
        "srtab_file_path", "training.repulsion.table; inner, outer: sw_rmin, sw_rmax of the model"
    ),
    unused("one_h5", "each worker writes its own training set"),
)

EXPLORATION: tuple[Key, ...] = (
    mapped(
        "model_devi_engine",
        "lammps: the committee's dynamics; gromacs: stages[].engine; others are refused, see below",
    ),
    mapped("model_devi_jobs", "stages, each explored once (repeat: false), in order"),
    mapped("model_devi_dt", "md.timestep, ps"),
    mapped("model_devi_taut", "md.tau_t, ps"),
    mapped("model_devi_taup", "md.tau_p, ps"),
    unused("model_devi_neidelay", "neighbour lists are checked at every step"),
    mapped("model_devi_skip", "md.skip; the first frame (step 0) is never judged"),
    mapped("model_devi_f_trust_lo", "stages[].trust.low; by system: stages[].system_trust"),
    mapped("model_devi_f_trust_hi", "stages[].trust.high; by system: stages[].system_trust"),
    mapped("model_devi_v_trust_lo", "stages[].trust.low_v; from 1e9 on: not judged"),
    mapped("model_devi_v_trust_hi", "stages[].trust.high_v; from 1e9 on: not judged"),
    refused("model_devi_e_trust_lo", "renamed by DP-GEN: use model_devi_v_trust_lo", 1e10),
    refused("model_devi_e_trust_hi", "renamed by DP-GEN: use model_devi_v_trust_hi", 1e10),
    mapped(
        "model_devi_adapt_trust_lo",
        "stages[].trust.low: 0, and labels are drawn from the largest deviations of each system",
    ),
    mapped("model_devi_numb_candi_f", "with model_devi_adapt_trust_lo: selection.pool_size"),
    mapped("model_devi_perc_candi_f", "with model_devi_adapt_trust_lo: selection.pool_share"),
    refused("model_devi_numb_candi_v", NO_VIRIAL, 0),
    refused("model_devi_perc_candi_v", NO_VIRIAL, 0, 0.0),
    refused(
        "model_devi_f_avg_relative",
        "use use_relative and epsilon, which are relative per atom",
        False,
    ),
    unused("model_devi_clean_traj", LOGGED),
    unused("model_devi_merge_traj", LOGGED),
    mapped("model_devi_nopbc", "systems.*.periodic: false"),
    mapped("model_devi_plumed", "stages[].engine.plumed: each job's template.plm"),
    refused(
        "model_devi_plumed_path",
        "reference paths are not transferred with a PLUMED input; avoid PATHMSD",
        False,
    ),
    mapped("shuffle_poscar", "systems.*.shuffle"),
    mapped("use_relative", "stages[].trust.relative, with epsilon"),
    mapped("epsilon", "stages[].trust.relative, eV/Å"),
    mapped("use_relative_v", "stages[].trust.relative_v, with epsilon_v"),
    mapped("epsilon_v", "stages[].trust.relative_v, eV"),
    refused(
        "lmp_d3",
        "dynamics use the committee alone; train on labels that include dispersion",
        {},
        {"enable": False},
    ),
    unused("lmp_neigh_modify_one", "neighbour lists without D3 do not need it"),
)

JOB: tuple[Key, ...] = (
    mapped("sys_idx", "stages[].systems; ranges such as 0-4:2 are expanded"),
    mapped("temps", "stages[].temperatures, K; with use_ele_temp also electron_temperatures"),
    mapped("Ts", "as temps"),
    mapped("press", "stages[].pressures, bar; not used if the ensemble has no barostat"),
    mapped("Ps", "as press"),
    mapped("trj_freq", "stages[].md.every"),
    mapped("t_freq", "as trj_freq"),
    mapped("traj_freq", "as trj_freq"),
    mapped("nsteps", "stages[].md.steps"),
    mapped("ensemble", "stages[].md.ensemble; npt-i, -a, -t: npt-iso, -aniso, -tri"),
    mapped("ens", "as ensemble"),
    mapped("dt", "stages[].md.timestep, ps"),
    mapped("taut", "stages[].md.tau_t, ps"),
    mapped("taup", "stages[].md.tau_p, ps"),
    unused("neidelay", "neighbour lists are checked at every step"),
    mapped("nbeads", "stages[].engine, kind: pimd"),
    mapped("template", "stages[].engine, kind: template"),
    mapped("rev_mat", "stages[].engine.revisions; V_NSTEPS: md.steps, V_TEMP: temperatures"),
    mapped("sys_rev_mat", "stages[].engine.system_revisions, by the names of the systems"),
    refused("pka_e", "recoils are not imported; offer the structures with `dpstream propose`"),
    mapped("model_devi_f_trust_lo", "stages[].trust.low; by system: stages[].system_trust"),
    mapped("model_devi_f_trust_hi", "stages[].trust.high; by system: stages[].system_trust"),
    mapped("model_devi_v_trust_lo", "stages[].trust.low_v; by system: stages[].system_trust"),
    mapped("model_devi_v_trust_hi", "stages[].trust.high_v; by system: stages[].system_trust"),
    *(
        unused(name, "training always precedes the next job")
        for name in ("skip_training", "skip_train", "sk_tr", "s_t")
    ),
)

TEMPLATE: tuple[Key, ...] = (
    mapped("lmp", "stages[].engine.lammps"),
    mapped("plm", "stages[].engine.plumed"),
    unused("plm_path", "belongs to model_devi_plumed_path"),
)
REVISIONS: tuple[Key, ...] = (
    mapped("lmp", "stages[].engine.revisions.lammps; replaced in both inputs"),
    mapped("plm", "stages[].engine.revisions.plumed"),
)
LEFT_TO_TEMPLATE = {
    name: unused(name, "the template sets it")
    for name in ("press", "Ps", "ensemble", "ens", "taut", "taup", "neidelay")
}
"""Keys of a job that have no effect if it has a template."""

LABELING: tuple[Key, ...] = (
    mapped("fp_style", "labels.code; see below for the keys of each fp_style"),
    mapped("fp_task_max", "selection.per_system"),
    mapped("fp_task_min", "selection.min_per_system"),
    mapped("fp_accurate_threshold", "selection.none_above"),
    mapped("fp_accurate_soft_threshold", "selection.fewer_above"),
    refused("fp_cluster_vacuum", "frames are not judged by the vacuum around them; remove it"),
    unused("detailed_report_make_fp", "use `dpstream why FRAME`"),
    mapped("ratio_failed", "convergence.max_rejected; a round above it fails"),
)

ENGINES = {
    "amber": "DPRc's labels are differences of two levels of theory, which is not supported; "
    "continue with dpgen run",
    "calypso": "remove it and CALYPSO's keys, let CALYPSO search beside the campaign, and offer "
    "its structures: dpstream propose --watch DIR",
}
"""Values of model_devi_engine that are refused, and what to do."""
OTHER_ENGINES: dict[str, tuple[str, ...]] = {
    "amber": (
        *("low_level", "cutoff", "parm7_prefix", "parm7", "mdin_prefix", "mdin", "qm_region"),
        *("qm_charge", "nsteps", "r", "disang_prefix", "disang"),
    ),
    "calypso": ("calypso_input_path", "model_devi_max_iter", "vsc"),
    "gromacs": ("gromacs_settings",),
}
OTHER_JOBS: dict[str, tuple[str, ...]] = {
    "gromacs": ("restart_from_iter", "lambdas"),
    "calypso": (
        *("times", "NameOfAtoms", "NumberOfAtoms", "NumberOfFormula", "Volume", "DistanceOfIon"),
        *("PsoRatio", "PopSize", "MaxStep", "ICode", "Split", "VSC", "MaxNumAtom", "CtrlRange"),
        *("PSTRESS", "fmax", "task_min"),
    ),
}
"""Keys of jobs that only other engines use."""


def _of_engines(keys: Mapping[str, Iterable[str]]) -> Iterator[Key]:
    for engine, names in keys.items():
        yield from (ignored(name, f"only model_devi_engine {engine} uses it") for name in names)


PARAM = (
    *DATA,
    *TRAINING,
    *EXPLORATION,
    *LABELING,
    *_of_engines(OTHER_ENGINES),
)
JOBS = (*JOB, *_of_engines(OTHER_JOBS))
