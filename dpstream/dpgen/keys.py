"""Every key of `dpgen run` (DP-GEN 0.14) that is not the labeling code's or the machine's, and what
becomes of it. The table in `docs/dp-gen.md` is made from here."""

from __future__ import annotations

from dpstream.dpgen.document import Key, mapped, refused, unused

LOGGED = "whole trajectories are never kept"

DATA: tuple[Key, ...] = (
    mapped("type_map", "type_map"),
    mapped("mass_map", "md.masses; auto: the standard ones"),
    mapped("use_ele_temp", "labels.electron_temperature; 1: fparam, 2: aparam"),
    mapped("init_data_prefix", "joined to initial.data"),
    mapped("init_data_sys", "initial.data"),
    mapped("sys_format", "systems.*.format, dpdata's name; vasp/poscar needs none"),
    mapped("init_batch_size", "training.input.training.training_data.batch_size where all agree"),
    mapped("sys_configs_prefix", "joined to systems.*.structures"),
    mapped("sys_configs", "systems.sys-000 … by index, those that jobs explore; globs stay"),
    mapped("sys_batch_size", "as init_batch_size"),
    refused("sys_charges", "one campaign has one charge: labels.charge", []),
)

TRAINING: tuple[Key, ...] = (
    refused("mlp_engine", "only dp (DeePMD-kit)", "dp"),
    mapped("numb_models", "training.members"),
    unused("train_param", "every training has its own input.json"),
    mapped("train_backend", "training.backend"),
    unused("model_format", "follows from the backend"),
    mapped(
        "default_training_param",
        "training.input, with DeePMD-kit's defaults where ours differ; numb_steps (stop_batch): "
        "training.min_steps = max_steps; a list: training.member_input",
    ),
    mapped(
        "training_iter0_model_path",
        "training.init, how: init-model; not used without training_init_model",
    ),
    mapped("training_init_frozen_model", "training.init, how: init-frz-model"),
    mapped("training_finetune_model", "training.init, how: finetune"),
    mapped("training_init_model", "training.warm: 1 and no cold starts; false: always cold"),
    mapped("training_reuse_iter", "training.warm; from the second training on"),
    unused("training_reuse_old_ratio", "old and new labels weigh the same, by frames"),
    mapped("training_reuse_numb_steps", "training.warm, as a share of numb_steps"),
    mapped("training_reuse_stop_batch", "as training_reuse_numb_steps"),
    mapped("training_reuse_start_lr", "training.warm_start_lr"),
    mapped("training_reuse_start_pref_e", "training.warm_input.loss.start_pref_e"),
    mapped("training_reuse_start_pref_f", "training.warm_input.loss.start_pref_f"),
    mapped("model_devi_activation_func", "training.member_input, both networks of each member"),
    unused("dp_train_skip_neighbor_stat", "the statistics take a second"),
    mapped("dp_compress", "training.compress"),
    mapped(
        "srtab_file_path", "training.repulsion.table; inner, outer: the model's sw_rmin, sw_rmax"
    ),
    unused("one_h5", "each worker writes its own training set"),
)

EXPLORATION: tuple[Key, ...] = (
    refused(
        "model_devi_engine",
        "only lammps; structures of other programs come in through `dpstream propose`",
        "lammps",
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
    refused("model_devi_e_trust_lo", "its name is model_devi_v_trust_lo by now", 1e10),
    refused("model_devi_e_trust_hi", "its name is model_devi_v_trust_hi by now", 1e10),
    refused(
        "model_devi_adapt_trust_lo",
        "give fixed levels, or trust: {target: …} in the imported campaign",
        False,
    ),
    unused("model_devi_numb_candi_f", "belongs to model_devi_adapt_trust_lo"),
    unused("model_devi_numb_candi_v", "belongs to model_devi_adapt_trust_lo"),
    unused("model_devi_perc_candi_f", "belongs to model_devi_adapt_trust_lo"),
    unused("model_devi_perc_candi_v", "belongs to model_devi_adapt_trust_lo"),
    refused(
        "model_devi_f_avg_relative",
        "give use_relative and epsilon instead: relative by atom",
        False,
    ),
    unused("model_devi_clean_traj", LOGGED),
    unused("model_devi_merge_traj", LOGGED),
    mapped("model_devi_nopbc", "systems.*.periodic: false"),
    mapped("model_devi_plumed", "stages[].engine.plumed: each job's template.plm"),
    refused(
        "model_devi_plumed_path",
        "a reference path does not travel with a PLUMED input; write its variable without PATHMSD",
        False,
    ),
    refused("shuffle_poscar", "write the shuffled structures to files, and list those", False),
    mapped("use_relative", "stages[].trust.relative, with epsilon"),
    mapped("epsilon", "stages[].trust.relative, eV/Å"),
    mapped("use_relative_v", "stages[].trust.relative_v, with epsilon_v"),
    mapped("epsilon_v", "stages[].trust.relative_v, eV"),
    refused(
        "lmp_d3",
        "the committee drives alone; train on labels with dispersion instead",
        {},
        {"enable": False},
    ),
    unused("lmp_neigh_modify_one", "neighbour lists have room enough without D3"),
)

JOB: tuple[Key, ...] = (
    mapped("sys_idx", "stages[].systems; ranges such as 0-4:2 are written out"),
    mapped("temps", "stages[].temperatures, K; with use_ele_temp electron_temperatures too"),
    mapped("Ts", "as temps"),
    mapped("press", "stages[].pressures, bar; nothing where the ensemble has no barostat"),
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
    refused("pka_e", "recoils are not imported; offer the structures by `dpstream propose`"),
    mapped("model_devi_f_trust_lo", "stages[].trust.low; by system: stages[].system_trust"),
    mapped("model_devi_f_trust_hi", "stages[].trust.high; by system: stages[].system_trust"),
    mapped("model_devi_v_trust_lo", "stages[].trust.low_v; by system: stages[].system_trust"),
    mapped("model_devi_v_trust_hi", "stages[].trust.high_v; by system: stages[].system_trust"),
    *(
        refused(name, "every label is trained on before the next job; drop it", False)
        for name in ("skip_training", "skip_train", "sk_tr", "s_t")
    ),
)

TEMPLATE: tuple[Key, ...] = (
    mapped("lmp", "stages[].engine.lammps"),
    mapped("plm", "stages[].engine.plumed"),
    unused("plm_path", "belongs to model_devi_plumed_path"),
)
REVISIONS: tuple[Key, ...] = (
    mapped("lmp", "lammps of the engine's revisions; its words are replaced in both inputs"),
    mapped("plm", "plumed of the engine's revisions"),
)
LEFT_TO_TEMPLATE = {
    name: unused(name, "the template says it itself")
    for name in ("press", "Ps", "ensemble", "ens", "taut", "taup", "neidelay")
}
"""Keys of a job that mean nothing beside a template."""

LABELING: tuple[Key, ...] = (
    mapped("fp_style", "labels.code; its own keys: see below"),
    mapped("fp_task_max", "selection.per_system"),
    mapped("fp_task_min", "selection.min_per_system"),
    mapped("fp_accurate_threshold", "selection.none_above"),
    mapped("fp_accurate_soft_threshold", "selection.fewer_above"),
    refused("fp_cluster_vacuum", "clusters are not cut; drop it"),
    unused("detailed_report_make_fp", "`dpstream why FRAME` tells, whenever asked"),
    mapped("ratio_failed", "convergence.max_rejected; above it a round has not passed"),
)

OTHERS = "belongs to another model_devi_engine than lammps"
OTHER_ENGINES: dict[str, tuple[str, ...]] = {
    "amber": (
        *("low_level", "cutoff", "parm7_prefix", "parm7", "mdin_prefix", "mdin", "qm_region"),
        *("qm_charge", "nsteps", "r", "disang_prefix", "disang"),
    ),
    "calypso": ("calypso_input_path", "model_devi_max_iter", "vsc"),
    "gromacs": ("gromacs_settings",),
}
OTHER_JOBS = (
    *("restart_from_iter", "lambdas", "times", "NameOfAtoms", "NumberOfAtoms", "NumberOfFormula"),
    *("Volume", "DistanceOfIon", "PsoRatio", "PopSize", "MaxStep", "ICode", "Split", "VSC"),
    *("MaxNumAtom", "CtrlRange", "PSTRESS", "fmax", "task_min"),
)
"""Keys of other engines' jobs."""

PARAM = (
    *DATA,
    *TRAINING,
    *EXPLORATION,
    *LABELING,
    *(refused(name, OTHERS) for names in OTHER_ENGINES.values() for name in names),
)
JOBS = (*JOB, *(refused(name, OTHERS) for name in OTHER_JOBS))
