"""Every term of the loss, every input beside the atoms, repulsion and given models change the fit:
real trainings of DeePMD-kit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from dpstream.services.trainer.checkpoints import pack_given
from dpstream.services.trainer.repulsion import zbl
from dpstream.services.trainer.training import TrainingJob
from dpstream.services.trainer.training_input import BACKENDS, INPUT
from dpstream.shared.atoms.dataset import Labelled
from dpstream.shared.atoms.frames import Frame, FrameLabel, canonical, from_ase
from dpstream.shared.errors import Permanent
from dpstream.shared.values import given_model
from tests.support.models.graphs import field, node, writing
from tests.support.models.tiny_fits import (
    STEPS,
    Apart,
    Fit,
    fit,
    fit_by_parameter,
    relabelled,
    trimers,
)
from tests.support.workers.trainer import TrainerHarness

TRIMERS = trimers()


@pytest.fixture(scope="module")
def plain(trainer: TrainerHarness) -> Fit:
    """Energies and forces by dpstream's own schedule."""
    return fit(trainer, TRIMERS)


# ------------------------------------------------------------------------------ losses


@pytest.mark.soak
def test_forces_are_learned_by_their_prefactors_only(trainer: TrainerHarness, plain: Fit) -> None:
    energy = fit(trainer, TRIMERS, {"start_pref_e": 1.0, "start_pref_f": 0.0, "limit_pref_f": 0.0})
    assert "rmse_f_trn" not in energy.errors
    assert energy.measured(TRIMERS)["force"] > 1.5 * plain.errors["rmse_f_trn"]


@pytest.mark.soak
def test_virials_alone_teach_if_their_prefactors_say_so(trainer: TrainerHarness) -> None:
    """One atom in a strained cell; energy and force weigh nothing."""
    rng = np.random.default_rng(3)
    items = []
    for _ in range(8):
        atoms = bulk("Cu")
        strain = rng.normal(0, 0.03, (3, 3))
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        frame = canonical(from_ase(atoms)).frame
        atoms.set_cell(frame.cell)
        atoms.positions, atoms.calc = frame.positions, EMT()
        virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
        items.append(Labelled(frame, FrameLabel(0.0, np.zeros((1, 3)), virial), {}))
    silent = {f"{end}_pref_{term}": 0.0 for end in ("start", "limit") for term in "ef"}
    descriptor = {"sel": [24], "rcut": 3.2, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 4}
    model = {"descriptor": descriptor, "fitting_net": {"neuron": [12, 12]}}
    found = fit(trainer, items, {**silent, "start_pref_v": 1.0, "limit_pref_v": 1.0}, model)
    virials = np.array([item.label.virial for item in items])
    assert found.errors["rmse_v_trn"] < 0.5 * np.sqrt(np.mean(virials**2))


@pytest.mark.soak
def test_relative_forces_favour_the_small_ones(trainer: TrainerHarness) -> None:
    """Frames with their forces and with five times those: squares are least at three times the
    forces, relative ones, where small forces weigh more, well below that."""
    small = TRIMERS[6:]
    large = [relabelled(item, 0.0, 5.0) for item in small]
    forces = {"start_pref_e": 0.0, "limit_pref_e": 0.0}
    relative = fit(trainer, [*small, *large], {**forces, "relative_f": 4.0})
    absolute = fit(trainer, [*small, *large], forces)
    assert relative.measured(small)["force"] < 0.7 * absolute.measured(small)["force"]
    assert relative.measured(large)["force"] > absolute.measured(large)["force"]


@pytest.mark.soak
def test_atoms_without_a_prefactor_are_not_believed(trainer: TrainerHarness) -> None:
    """Two atoms of three with their forces upside down, the third alone to learn from: a loss that
    looked at all, or at none, would err by more than the forces themselves."""
    signs, first = np.array([[1.0], [-1.0], [-1.0]]), np.array([1.0, 0.0, 0.0])
    items = [relabelled(item, 0.0, signs, atom_pref=first) for item in TRIMERS]
    energy = {"start_pref_e": 0.0, "limit_pref_e": 0.0}
    forces = {"start_pref_f": 0.0, "limit_pref_f": 0.0}
    told = fit(trainer, items, {**energy, **forces, "start_pref_pf": 1000.0, "limit_pref_pf": 1.0})
    measured = told.measured(TRIMERS)
    assert measured["force"] < 0.6 * measured["rms_force"]


@pytest.mark.soak
def test_energy_differences_are_sums_with_coefficients(trainer: TrainerHarness) -> None:
    """Energies of the opposite sign go with the forces only if the coefficients are known."""
    items = [relabelled(item, -1.0, atom_ener_coeff=-np.ones(3)) for item in TRIMERS]
    energy = {"start_pref_e": 100.0, "limit_pref_e": 100.0}
    told = fit(trainer, items, {**energy, "enable_atom_ener_coeff": True})
    untold = fit(trainer, items, energy)
    assert told.errors["rmse_e_trn"] < 0.5 * untold.errors["rmse_e_trn"]
    # What dpstream measures is what DeePMD-kit minimised.
    assert told.measured(items)["energy"] == pytest.approx(told.errors["rmse_e_trn"], rel=0.02)


@pytest.mark.parametrize("name", ["fparam", pytest.param("aparam", marks=pytest.mark.soak)])
def test_parameters_tell_frames_of_the_same_atoms_apart(
    trainer: TrainerHarness, by_fparam: Apart, name: str
) -> None:
    """Every frame has opposite labels: without the parameter no model comes nearer than zero."""
    both, told = by_fparam if name == "fparam" else fit_by_parameter(trainer, name)
    measured = told.measured(both)
    assert measured["force"] < 0.6 * measured["rms_force"]
    assert measured["force"] == pytest.approx(told.errors["rmse_f_trn"], rel=0.02)


# ------------------------------------------------------------------------------ short range


def dimer(distance: float) -> Frame:
    return Frame(("Cu", "Cu"), np.array([[0.0, 0, 0], [distance, 0, 0]]))


def test_repulsion_makes_short_distances_repulsive(trainer: TrainerHarness, plain: Fit) -> None:
    """Nothing nearer than 1.5 Å was trained on. There the network alone does not know repulsion;
    with the table, energies below `inner` are those of the universal potential."""
    repelled = fit(trainer, TRIMERS, repulsion={"inner": 0.7, "outer": 1.3})
    distances = np.array([0.2, 0.4, 0.6])
    exact = zbl(distances, "Cu", "Cu")
    alone = np.array([plain.energy(dimer(d)) for d in distances])
    found = np.array([repelled.energy(dimer(d)) for d in distances])
    assert -np.diff(found) == pytest.approx(-np.diff(exact), rel=1e-3)
    assert (np.abs(np.diff(alone)) < 0.1 * -np.diff(exact)).all()
    assert repelled.measured(TRIMERS)["force"] < 2 * plain.errors["rmse_f_trn"]


def test_dimers_do_not_count_in_the_training_error(trainer: TrainerHarness, plain: Fit) -> None:
    """They are trained on; the error of a member is that of the other frames."""
    near = [canonical(dimer(d)).frame for d in (0.5, 0.8)]
    wild = [Labelled(frame, FrameLabel(500.0, np.full((2, 3), 300.0)), {}) for frame in near]
    refs = [trainer.label(item.frame, item.label) for item in [*TRIMERS, *wild]]
    spec = {"type_map": ["Cu"], "dimers": {"distances": [0.5, 0.8]}}
    command = trainer.command(spec, dataset=trainer.manifest(99, labels=refs))
    job = TrainingJob(trainer.resources, command, trainer.context(command))
    job.prepare()
    systems = json.loads((job.folder / INPUT).read_text())["training"]["training_data"]["systems"]
    assert sorted(systems) == ["train/Cu2-nopbc", "train/Cu3-nopbc"]
    found = job.measure(plain.frozen)["train"]
    assert found is not None
    assert found.frames == len(TRIMERS)
    assert found.force == pytest.approx(plain.errors["rmse_f_trn"], rel=0.02)


# ------------------------------------------------------------------------------ given models


def begun(trainer: TrainerHarness, how: str, suffix: str, data: bytes) -> Fit:
    """Five small steps of a training that asks for another architecture than it is given."""
    ref = trainer.put(f"campaigns/t/inputs/{how}.{suffix}", data)
    files, init = {given_model(0): ref}, {"model": "given", "how": how}
    return fit(trainer, TRIMERS, model={}, steps=5, files=files, init=init, warm_start_lr=1e-6)


@pytest.mark.parametrize(
    "how", [pytest.param("init-frz-model", marks=pytest.mark.soak), "init-model"]
)
def test_trainings_begin_in_the_weights_of_a_given_model(
    trainer: TrainerHarness, plain: Fit, how: str
) -> None:
    if how == "init-model":
        data = pack_given(plain.folder / f"model.ckpt-{STEPS}", BACKENDS["tensorflow"])
        found = begun(trainer, how, "zip", data)
    else:
        found = begun(trainer, how, "pb", plain.frozen.read_bytes())
    assert found.errors["rmse_f_trn"] == pytest.approx(plain.errors["rmse_f_trn"], rel=0.05)


@pytest.mark.soak
def test_a_pretrained_model_is_finetuned(trainer: TrainerHarness) -> None:
    """To energies elsewhere: their zero is found in the data, the forces are known already."""
    descriptor = {"type": "se_atten", "sel": 6, "rcut": 4.5, "rcut_smth": 1.0, "neuron": [4, 8]}
    descriptor |= {"axis_neuron": 4, "attn_layer": 0}
    model = {"descriptor": descriptor, "fitting_net": {"neuron": [12, 12]}}
    pretrained = fit(trainer, TRIMERS, model=model)
    found = begun(trainer, "finetune", "pb", pretrained.frozen.read_bytes())
    assert found.errors["rmse_f_trn"] == pytest.approx(pretrained.errors["rmse_f_trn"], rel=0.1)


@pytest.mark.parametrize("how", ["init-frz-model", "finetune"])
def test_no_training_begins_in_a_graph_that_writes_a_file(
    trainer: TrainerHarness, plain: Fit, tmp_path: Path, how: str
) -> None:
    data = writing(plain.frozen, tmp_path / "written", "by the energy")
    with pytest.raises(Permanent, match="given-model-0: node 'writes': operation 'WriteFile'"):
        begun(trainer, how, "pb", data)


def test_no_training_begins_in_a_checkpoint_whose_graph_writes_a_file(
    trainer: TrainerHarness, plain: Fit
) -> None:
    prefix = plain.folder / f"model.ckpt-{STEPS}"
    meta = prefix.with_name(f"{prefix.name}.meta")
    whole = meta.read_bytes()
    meta.write_bytes(whole + field(2, node("model_type", "WriteFile")))
    try:
        data = pack_given(prefix, BACKENDS["tensorflow"])
    finally:
        meta.write_bytes(whole)
    with pytest.raises(Permanent, match="node 'model_type': operation 'WriteFile'"):
        begun(trainer, "init-model", "zip", data)


def test_models_that_may_run_code_are_begun_from_where_allowed_only(
    trainer: TrainerHarness,
) -> None:
    with pytest.raises(
        Permanent, match=r"given-model-0: this worker's DPSTREAM_TRAINER_MODELS lacks \.pth"
    ):
        begun(trainer, "init-frz-model", "pth", b"anything")
