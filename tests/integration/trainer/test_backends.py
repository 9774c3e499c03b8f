"""Backends that the environment may not have: trained for real, driven by LAMMPS for real.

Each runs where it is installed, also where no other is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.trainer import __main__ as trainer_process
from dpstream.services.trainer import checkpoints
from dpstream.services.trainer.settings import TrainerSettings
from dpstream.services.trainer.training_input import BACKENDS, INPUT, LCURVE
from dpstream.shared.atoms.deviation import max_force_deviation
from dpstream.shared.errors import Permanent, SpecError
from dpstream.shared.messages import MemberTrained
from dpstream.shared.runtime.device import Device, Gpu
from dpstream.shared.runtime.gpu_check import check_gpu
from dpstream.shared.settings import read_settings
from dpstream.shared.values import given_model
from tests.support.soak import SOAK
from tests.support.workers.explorer import CH4, evaluated, run
from tests.support.workers.trainer import TrainerHarness, backends_loaded_by

STEPS = 100
PATIENCE = 600.0
"""Seconds: these backends import, compile and trace for many."""


@pytest.fixture(scope="module", params=[pytest.param("pytorch", marks=pytest.mark.pytorch), "jax"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    chosen = BACKENDS[name]
    if find_spec(chosen.package) is None:
        pytest.skip(f"{chosen.package} is not installed: pip install '{chosen.install}'")
    return name


@pytest.fixture(scope="module")
def trained(trainer: TrainerHarness, backend: str) -> MemberTrained:
    return trainer.train({"backend": backend}, steps=STEPS, max_seconds=PATIENCE)


@pytest.fixture(scope="module")
def warm(trainer: TrainerHarness, backend: str, trained: MemberTrained) -> MemberTrained:
    """Begun in the first."""
    spec = {"backend": backend, "compress": backend == "jax"}
    start = trained.checkpoint
    return trainer.train(spec, steps=10, start=start, seed=12, max_seconds=PATIENCE)


def test_a_member_is_trained_frozen_compressed_and_begun_in(
    trainer: TrainerHarness, trained: MemberTrained, warm: MemberTrained, backend: str
) -> None:
    assert trained.compressed
    assert trained.model.uri.endswith(f"compressed{BACKENDS[backend].suffix}")
    assert trained.train.force < 0.5 * trained.train.rms_force
    assert warm.train.force < 1.5 * trained.train.force
    curve = trainer.store.get(trained.lcurve.uri).decode().splitlines()
    assert trained.train.energy == pytest.approx(float(curve[-1].split()[2]), rel=0.2, abs=0.1)


def test_the_child_loads_its_own_backend_alone(
    trainer: TrainerHarness, trained: MemberTrained, backend: str
) -> None:
    engine = trainer.resources.engine(backend)
    converter = {"tensorflow"} if backend == "jax" else set()
    assert backends_loaded_by(engine) <= {backend} | converter
    described = engine.call("describe", {})
    assert described["backend"].startswith(f"{backend} ")
    assert described.keys() == {"backend", "device", "runtime"}


def test_a_member_depends_on_no_earlier_training(
    trainer: TrainerHarness, trained: MemberTrained, warm: MemberTrained, backend: str
) -> None:
    """The first task of a process and a later one, in `make soak` also the first of a new process:
    equal bytes."""
    if backend == "jax":
        pytest.skip("each training is a process")
    other = {"backend": backend, "input": {"model": {"fitting_net": {"neuron": [8, 8]}}}}
    trainer.train({**other, "compress": False}, steps=5, seed=3, max_seconds=PATIENCE)
    with pytest.raises(Permanent):  # after the process has begun the training
        _broken(trainer, backend)
    for is_new in (False, True) if SOAK else (False,):
        if is_new:
            trainer.resources.engine(backend).kill()
        member = trainer.train({"backend": backend}, steps=STEPS, max_seconds=PATIENCE)
        assert member.lcurve.sha256 == trained.lcurve.sha256
        assert member.frozen.sha256 == trained.frozen.sha256
        assert member.model.sha256 == trained.model.sha256
        assert member.test == trained.test


def test_resident_frames_change_no_digit(
    trainer: TrainerHarness, trained: MemberTrained, backend: str, tmp_path: Path
) -> None:
    """The same training by DeePMD-kit's own loader, in a process of its own."""
    if backend != "pytorch":
        pytest.skip("the loader of PyTorch alone is replaced")
    folder = trainer.root / "scratch" / trained.task
    shutil.copytree(folder / "train", tmp_path / "train")
    shutil.copy(folder / INPUT, tmp_path)
    line = [sys.executable, "-I", "-m", "deepmd", "--pt", "train", INPUT]
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / LCURVE).read_bytes() == trainer.store.get(trained.lcurve.uri)


def _broken(trainer: TrainerHarness, backend: str) -> None:
    """A training from a file that is no model."""
    files = {given_model(0): trainer.put("campaigns/t/inputs/broken.pt", b"no model")}
    begin = {"backend": backend, "init": {"model": "given", "how": "finetune"}}
    trainer.train(begin, steps=5, files=files, max_seconds=PATIENCE)


def test_a_compressed_model_is_evaluated_before_the_first_task(
    trainer: TrainerHarness, backend: str, tmp_path: Path
) -> None:
    if backend != "pytorch":
        pytest.skip("PyTorch's compressed models need further CUDA libraries")
    engine = trainer.resources.engine(backend)
    assert engine.call("check", {"folder": str(tmp_path)}) == "cpu"
    gpu = Device("cuda", Gpu(0, "H200", 143771, "580.1"))
    check_gpu(engine, gpu)
    (tmp_path / "engine").write_text("no folder")
    engine.scratch, scratch = tmp_path / "engine", engine.scratch
    try:
        with pytest.raises(SpecError, match=r"H200 .* does not evaluate compressed PyTorch"):
            check_gpu(engine, gpu)
    finally:
        engine.scratch = scratch


@pytest.mark.pytorch
def test_the_gpu_is_checked_by_the_first_slot_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each check waits for an import of torch and a CUDA context."""
    if find_spec("tensorflow") is not None or find_spec("torch") is None:
        pytest.skip("PyTorch is not the first backend here")
    gpu = Device("cuda", Gpu(0, "H200", 143771, "580.1"))
    monkeypatch.setattr(trainer_process, "chosen", lambda setting: gpu)
    settings = read_settings(TrainerSettings, broker="amqp://host", store="x", trainer_slots=3)
    slots = [plan.resources for plan in trainer_process.plans(settings, tmp_path)]
    try:
        for slot in slots:
            slot.start()
        assert [slot.engine("pytorch")._calls for slot in slots] == [1, 0, 0]
    finally:
        for slot in slots:
            slot.close()


def test_a_training_goes_on_and_is_finetuned(
    trainer: TrainerHarness, backend: str, trained: MemberTrained
) -> None:
    settings = {"backend": backend, "compress": backend == "jax", "mode": "streaming"}
    steps, resume = STEPS + 10, trained.checkpoint
    longer = trainer.train(settings, steps=steps, resume=resume, max_seconds=PATIENCE)
    curve = trainer.store.get(longer.lcurve.uri).decode().splitlines()
    assert int(curve[-1].split()[0]) == STEPS + 10
    assert longer.train.force < 1.5 * trained.train.force
    if backend == "jax":
        return
    folder = trainer.root / "given"
    step = checkpoints.unpack(trainer.store.get(trained.checkpoint.uri), folder)
    data = (folder / BACKENDS[backend].checkpoint(step)).read_bytes()
    files = {given_model(0): trainer.put("campaigns/t/inputs/given.pt", data)}
    begin = {**settings, "mode": "lockstep", "init": {"model": "given", "how": "finetune"}}
    tuned = trainer.train(begin, steps=5, files=files, max_seconds=PATIENCE)
    assert tuned.train.force < 1.5 * trained.train.force


def test_lammps_runs_the_committee_and_says_its_deviation(
    trainer: TrainerHarness, trained: MemberTrained, warm: MemberTrained, tmp_path: Path
) -> None:
    models = [trainer.file(trained.model), trainer.file(warm.model)]
    resources = ExplorerResources(tmp_path / "bench")
    try:
        found = run(resources.engine, tmp_path / "t", CH4, models)
        assert found.outcome["made"] == 10
        judged = evaluated(resources.engine, tmp_path, models, found.batch(CH4))
    finally:
        resources.close()
    deviation = max_force_deviation(judged["forces"])
    np.testing.assert_allclose(found.arrays["devi_f"], deviation, rtol=2e-4, atol=2e-5)
