"""The trainer with real DeePMD-kit: a small methane set, trained, resumed, compressed, measured."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpstream.services.trainer import checkpoints
from dpstream.services.trainer.handlers import HANDLERS
from dpstream.services.trainer.resources import TrainerResources
from dpstream.services.trainer.training import TrainingJob
from dpstream.services.trainer.training_input import BACKENDS, TrainingRun, build_input
from dpstream.shared.atoms.dataset import load_dataset, write_deepmd
from dpstream.shared.atoms.frames import Frame, FrameLabel
from dpstream.shared.codec import decode
from dpstream.shared.errors import EngineCrashed, Permanent, Stopped, Temporary
from dpstream.shared.messages import MemberTrained, Train
from dpstream.shared.proof import digest
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.device import Device, Gpu
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.values import TRAINED, DeviceFacts, Ref
from tests.support.workers.trainer import TrainerHarness, backends_loaded_by, mapped_by, spec_of

TENSORFLOW = BACKENDS["tensorflow"]


@pytest.fixture(scope="module")
def trained(trainer: TrainerHarness) -> MemberTrained:
    return trainer.train(steps=400, test=trainer.test, audit=trainer.test)


@pytest.fixture(scope="module")
def short(trainer: TrainerHarness) -> MemberTrained:
    return trainer.train({"compress": False}, steps=40)


def evaluate_elsewhere(
    models: list[Path], trainer: TrainerHarness, manifest: Ref
) -> list[dict[str, float]]:
    """Errors by DeePMD-kit's own `DeepPot` in a process of its own."""
    items = load_dataset(lambda ref: trainer.store.get(ref.uri), manifest)
    (system,) = write_deepmd(items, trainer.root / "elsewhere", ["H", "C"])
    script = """
import json, sys, numpy as np
from deepmd.infer import DeepPot
system, *models = sys.argv[1:]
load = lambda name: np.load(f"{system}/set.000/{name}.npy")
types = np.loadtxt(f"{system}/type.raw", dtype=int)
rms = lambda values: float(np.sqrt(np.mean(values ** 2)))
def errors(model):
    energy, force, _ = DeepPot(model).eval(load("coord"), None, types)
    force = force.reshape(load("force").shape)
    return {"energy": rms(energy[:, 0] - load("energy")) / 5,
            "force": rms(force - load("force")), "rms_force": rms(load("force"))}
print(json.dumps([errors(model) for model in models]))
"""
    line = [sys.executable, "-c", script, str(system), *map(str, models)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    result: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_errors_are_those_deepmd_measures(trainer: TrainerHarness, trained: MemberTrained) -> None:
    """Of both models: the compressed one says the same as the frozen one."""
    assert trained.compressed
    assert trained.model != trained.frozen
    models = [trainer.file(trained.model), trainer.file(trained.frozen)]
    for other in evaluate_elsewhere(models, trainer, trainer.dataset):
        assert other["energy"] == pytest.approx(trained.train.energy, rel=1e-6)
        assert other["force"] == pytest.approx(trained.train.force, rel=1e-6)
        assert other["rms_force"] == pytest.approx(trained.train.rms_force, rel=1e-9)


def test_the_loss_curve_is_kept(trainer: TrainerHarness, trained: MemberTrained) -> None:
    lines = trainer.store.get(trained.lcurve.uri).decode().splitlines()
    assert lines[0].split()[:2] == ["#", "step"]
    assert int(lines[-1].split()[0]) == 400


@pytest.mark.soak
def test_another_seed_gives_another_model(trainer: TrainerHarness, short: MemberTrained) -> None:
    other = trainer.train({"compress": False}, steps=40, seed=12)
    assert other.train != short.train
    assert weights_of(trainer, other) != weights_of(trainer, short)


def weights_of(trainer: TrainerHarness, result: MemberTrained) -> bytes:
    """The bytes of all variables in a checkpoint, the optimizer's too."""
    folder = trainer.root / "weights" / result.task
    step = checkpoints.unpack(trainer.store.get(result.checkpoint.uri), folder)
    return (folder / f"{TENSORFLOW.checkpoint(step)}.data-00000-of-00001").read_bytes()


def test_checkpoints_are_announced_and_gone_on_from(trainer: TrainerHarness) -> None:
    """Streaming: stop in the middle, and another attempt takes up at the newest checkpoint, in
    another process, without the files of the first."""
    trainer.saved()
    command = trainer.command({"mode": "streaming", "checkpoint_steps": 100}, steps=3000)
    context = trainer.context(command)
    stopper = threading.Thread(target=stop_after_checkpoint, args=(context,))
    stopper.start()
    with pytest.raises(Stopped):
        HANDLERS[Train](trainer.resources, command, context)
    stopper.join()
    saved = trainer.saved()
    assert saved
    assert saved[-1].task == command.task
    step = saved[-1].step
    trainer.resources.close()
    shutil.rmtree(context.scratch)
    settings = {"mode": "streaming", "checkpoint_steps": 1000, "compress": False}
    result = trainer.train(settings, steps=step + 200, resume=saved[-1].checkpoint)
    steps = curve(trainer, result)
    assert step + 190 < steps[-1] <= step + 200
    assert steps == sorted(steps)
    assert any(s <= step for s in steps)
    assert result.train.force < result.train.rms_force


def stop_after_checkpoint(context: Context) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if checkpoints.newest_step(context.scratch, TENSORFLOW):
            break
        time.sleep(0.05)
    context.stopping.set()


def curve(trainer: TrainerHarness, result: MemberTrained) -> list[int]:
    lines = trainer.store.get(result.lcurve.uri).decode().splitlines()
    return [int(line.split()[0]) for line in lines if not line.startswith("#")]


@pytest.mark.soak
def test_lockstep_starts_over_and_announces_nothing(
    trainer: TrainerHarness, short: MemberTrained
) -> None:
    trainer.saved()
    settings = {"checkpoint_steps": 10, "compress": False}
    resumed = trainer.train(settings, steps=40, resume=short.checkpoint)
    assert resumed.frozen.sha256 == short.frozen.sha256
    assert trainer.saved() == []


def test_warm_start_begins_with_the_weights(
    trainer: TrainerHarness, trained: MemberTrained, short: MemberTrained
) -> None:
    warm = trainer.train({"compress": False}, steps=20, start=trained.checkpoint)
    assert warm.train.force < 1.5 * trained.train.force
    assert short.train.force > 3 * warm.train.force


@pytest.mark.soak
def test_descriptor_that_cannot_be_compressed_stays_frozen(trainer: TrainerHarness) -> None:
    descriptor = {"resnet_dt": True}
    result = trainer.train({"input": {"model": {"descriptor": descriptor}}}, steps=5)
    assert not result.compressed
    assert result.model == result.frozen


def test_periodic_virials_are_learned_and_measured(trainer: TrainerHarness) -> None:
    from ase.build import bulk
    from ase.calculators.emt import EMT

    rng = np.random.default_rng(5)
    loose = []
    for _ in range(6):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * (1 + rng.uniform(-0.02, 0.02)), scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
        frame = Frame(tuple(atoms.get_chemical_symbols()), atoms.positions, np.array(atoms.cell[:]))
        label = FrameLabel(float(atoms.get_potential_energy()), atoms.get_forces(), virial)
        loose.append(trainer.label(frame, label))
    manifest = trainer.manifest(9, labels=loose)
    loss = {"start_pref_f": 10.0, "start_pref_v": 100.0, "limit_pref_v": 100.0}
    settings = {"input": {"loss": loss}, "compress": False, "type_map": ["Cu"]}
    result = trainer.train(settings, dataset=manifest, steps=100)
    assert result.train.virial is not None
    rms_virial = np.sqrt(np.mean([(v / 4) ** 2 for v in virials(trainer, manifest)]))
    assert result.train.virial < 0.5 * rms_virial


def virials(trainer: TrainerHarness, manifest: Ref) -> list[Any]:
    items = load_dataset(lambda ref: trainer.store.get(ref.uri), manifest)
    return [item.label.virial for item in items]


def test_input_deepmd_refuses_is_permanent_and_says_why(trainer: TrainerHarness) -> None:
    with pytest.raises(Permanent, match="neurons"):
        trainer.train({"input": {"model": {"descriptor": {"neurons": [1]}}}})


def test_input_that_names_a_file_is_permanent(trainer: TrainerHarness, tmp_path: Path) -> None:
    """The spec arrives as an object that nobody else has validated."""
    elsewhere = tmp_path / "timeline.json"
    section = {"profiling": True, "profiling_file": str(elsewhere)}
    with pytest.raises(Permanent, match=r"training\.input: training\.profiling_file: .*must be"):
        trainer.train({"input": {"training": section}}, steps=2)
    assert not elsewhere.exists()


@pytest.mark.parametrize("laid", ["input.json", "train", "."])
def test_no_link_of_an_engine_leads_what_a_trainer_writes_elsewhere(
    trainer: TrainerHarness, tmp_path: Path, laid: str
) -> None:
    """An engine that an earlier training has subverted can make links in the folder of the next."""
    command, elsewhere = trainer.command({}), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    with private_folder(tmp_path / "scratch") as private:
        folder = private / "tasks" / "next"
        folder.parent.mkdir()
        if laid != ".":
            folder.mkdir()
        (folder / laid).symlink_to(elsewhere / "kept" if laid == "input.json" else elsewhere)
        context = Context(trainer.store, trainer.bus, command, folder, "w", threading.Event())
        resources = TrainerResources(private / "engine")
        resources.described["tensorflow"] = {}
        with nullcontext() if laid == "input.json" else pytest.raises(NotADirectoryError):
            TrainingJob(resources, command, context).prepare()
        assert laid != "input.json" or json.loads((folder / laid).read_text())
    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == {"kept": "kept"}


def test_element_outside_the_type_map_is_permanent(trainer: TrainerHarness) -> None:
    frame = Frame(("He",), np.zeros((1, 3)))
    loose = trainer.label(frame, FrameLabel(0.0, np.zeros((1, 3))))
    with pytest.raises(Permanent, match="He not in type_map"):
        trainer.train(dataset=trainer.manifest(8, labels=[loose]))


def test_a_member_states_what_it_was_trained_on(short: MemberTrained) -> None:
    assert short.device == DeviceFacts(
        kind="cpu", backend=f"tensorflow {version('tensorflow-cpu')}", precision="float64"
    )


def test_command_and_result_are_stored_with_the_proof_of_the_attempt(
    trainer: TrainerHarness, short: MemberTrained
) -> None:
    key = f"{short.model.uri.rpartition('/')[0]}/{TRAINED}"
    command, event, proof = trainer.store.get(key).splitlines()
    assert isinstance(decode(command), Train)
    assert decode(event) == short
    assert proof.decode() == digest("")  # this harness claims nothing


def test_a_demanded_gpu_that_deepmd_cannot_use_is_the_machines_fault(
    trainer: TrainerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(0, "NVIDIA H200", 143771, "580.159.04")
    monkeypatch.setattr(trainer.resources, "described", {})
    monkeypatch.setattr(trainer.resources, "device", Device("cuda", gpu, required=True))
    with pytest.raises(Temporary, match=r"tensorflow \S+ cannot use NVIDIA H200; pip install"):
        trainer.train({"compress": False}, steps=40)
    assert trainer.resources.described == {}, "it is asked again: the driver may have been mended"


def test_the_child_loads_tensorflow_alone(trainer: TrainerHarness) -> None:
    engine = trainer.resources.engine("tensorflow")
    described = engine.call("describe", {})
    assert backends_loaded_by(engine) == {"tensorflow"}
    assert "/matplotlib/" not in mapped_by(engine), "Keras imports it"
    assert described["backend"].startswith("tensorflow ")
    assert described.keys() == {"backend", "device", "runtime"}


def test_missing_backend_is_permanent_and_names_the_package(trainer: TrainerHarness) -> None:
    with pytest.raises(Permanent, match=r"pip install 'dpstream\[jax\]'"):
        trainer.train({"backend": "jax"})


def test_defaults_pass_deepmds_own_check(trainer: TrainerHarness) -> None:
    """Every selectable schedule and start, through DeePMD-kit's strict argument check."""
    script = "import json,sys; from deepmd.utils.argcheck import normalize; "
    script += "[normalize(d) for d in json.load(sys.stdin)]"
    training = spec_of().training
    cosine = {"type": "cosine", "start_lr": 1e-3, "stop_lr": 1e-6}
    schedules = [{}, {"learning_rate": cosine}, {"learning_rate": {"stop_lr_ratio": 1e-3}}]
    runs = [TrainingRun(("H", "C"), ("x",), 500, 3, 0, warm=warm) for warm in (False, True)]
    documents = [
        build_input(training.model_copy(update={"input": schedule}), run)
        for schedule in schedules
        for run in runs
    ]
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, input=json.dumps(documents), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_engine_killed_in_the_middle_is_a_crash_and_the_next_computes_the_same(
    trainer: TrainerHarness, short: MemberTrained
) -> None:
    """To the bit, though another process hashes its strings in another order."""
    command = trainer.command({}, steps=100_000)
    context = trainer.context(command)
    killer = threading.Thread(target=kill_while_training, args=(trainer, context))
    killer.start()
    with pytest.raises(EngineCrashed):
        HANDLERS[Train](trainer.resources, command, context)
    killer.join()
    again = trainer.train({"compress": False}, steps=40)
    assert again.frozen.sha256 == short.frozen.sha256
    assert again.train == short.train
    assert weights_of(trainer, again) == weights_of(trainer, short)


def kill_while_training(trainer: TrainerHarness, context: Context) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (context.scratch / "lcurve.out").exists():
        time.sleep(0.05)
    pid = trainer.resources.engine("tensorflow").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.mark.soak
def test_time_limit_ends_the_training(trainer: TrainerHarness) -> None:
    with pytest.raises(EngineCrashed, match="time limit"):
        trainer.train(steps=100_000, max_seconds=3.0)
