"""Names of all keys that `dpgen run` 0.14.0 documents, as its own argument tables list them."""

PARAM = """
type_map mass_map use_ele_temp init_data_prefix init_data_sys sys_format init_batch_size
sys_configs_prefix sys_configs sys_batch_size numb_models fp_task_max fp_task_min
fp_accurate_threshold fp_accurate_soft_threshold fp_cluster_vacuum detailed_report_make_fp
ratio_failed mlp_engine model_devi_engine fp_style train_backend model_format
training_iter0_model_path training_init_model default_training_param dp_train_skip_neighbor_stat
dp_compress training_reuse_iter training_reuse_old_ratio training_reuse_numb_steps
training_reuse_stop_batch training_reuse_start_lr training_reuse_start_pref_e
training_reuse_start_pref_f model_devi_activation_func srtab_file_path one_h5
training_init_frozen_model training_finetune_model model_devi_jobs model_devi_dt model_devi_skip
model_devi_f_trust_lo model_devi_f_trust_hi model_devi_v_trust_lo model_devi_v_trust_hi
model_devi_adapt_trust_lo model_devi_numb_candi_f model_devi_numb_candi_v model_devi_perc_candi_f
model_devi_perc_candi_v model_devi_f_avg_relative model_devi_clean_traj model_devi_merge_traj
model_devi_nopbc model_devi_plumed model_devi_plumed_path shuffle_poscar use_relative epsilon
use_relative_v epsilon_v lmp_d3 lmp_neigh_modify_one low_level cutoff parm7_prefix parm7
mdin_prefix mdin qm_region qm_charge nsteps r disang_prefix disang calypso_input_path
model_devi_max_iter vsc gromacs_settings
"""
JOB = """
template rev_mat sys_rev_mat sys_idx temps press trj_freq nsteps nbeads ensemble dt neidelay taut
taup model_devi_f_trust_lo model_devi_f_trust_hi model_devi_v_trust_lo model_devi_v_trust_hi
restart_from_iter times NameOfAtoms NumberOfAtoms NumberOfFormula Volume DistanceOfIon PsoRatio
PopSize MaxStep ICode Split VSC MaxNumAtom CtrlRange PSTRESS fmax task_min lambdas
"""
STYLES = {
    "vasp": "fp_pp_path fp_pp_files fp_incar fp_aniso_kspacing cvasp fp_skip_bad_box",
    "gaussian": "use_clusters cluster_cutoff cluster_cutoff_hard cluster_minify fp_params",
    "siesta": "use_clusters cluster_cutoff fp_params fp_pp_path fp_pp_files",
    "cp2k": "user_fp_params fp_params external_input_path",
    "abacus": "fp_pp_path fp_pp_files fp_orb_files fp_incar fp_kpt_file fp_dpks_descriptor "
    "user_fp_params k_points",
    "amber/diff": "high_level fp_params",
    "pwmat": "fp_pp_path fp_pp_files fp_incar user_fp_params fp_params",
    "pwscf": "fp_pp_path fp_pp_files fp_params user_fp_params",
    "cpx": "fp_params",
    "custom": "fp_params",
}
FP_PARAMS = {
    "gaussian": "keywords multiplicity nproc charge fragment_guesses basis_set "
    "keywords_high_multiplicity",
    "siesta": "ecut ediff kspacing mixingWeight NumberPulay",
    "pwscf": "ecut ediff smearing sigma kspacing",
    "custom": "input_fmt input_fn output_fmt output_fn",
}
MACHINE = """
api_version deepmd_version train model_devi fp command machine resources user_forward_files
user_backward_files export_command
"""
RESOURCES = """
number_node cpu_per_node gpu_per_node queue_name group_size custom_flags strategy para_deg
source_list module_purge module_unload_list module_list envs prepend_script append_script wait_time
"""
