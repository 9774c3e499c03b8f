"""On what a member was trained: in its result, and where people see it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.trainer.device_facts import device_facts, precision
from dpstream.services.trainer.training import TrainingJob
from dpstream.shared import messages as m
from dpstream.shared.codec import decode, encode
from dpstream.shared.errors import Temporary
from dpstream.shared.runtime.device import Device, chosen
from dpstream.shared.values import DeviceFacts
from dpstream.terminal.status import figures
from tests.support.campaigns import sample_ledger
from tests.support.workers.nvml import DRIVER, H200, has_gpus

ON_GPU = {"backend": "pytorch 2.11.0", "device": "cuda:0", "runtime": "13.0"}
ON_CPU = {"backend": "tensorflow 2.21.0", "device": "cpu", "runtime": ""}


def document(descriptor: Any = None, fitting: Any = None, **training: Any) -> dict[str, Any]:
    model = {"descriptor": descriptor or {}, "fitting_net": fitting or {}}
    return {"model": model, "training": training}


def test_a_training_on_a_gpu_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, H200)
    facts = device_facts(ON_GPU, chosen("auto"), document())
    assert facts == DeviceFacts(
        kind="cuda",
        model="NVIDIA H200",
        memory_mib=143771,
        driver=DRIVER,
        runtime="13.0",
        backend="pytorch 2.11.0",
        precision="float64",
    )
    assert str(facts) == "NVIDIA H200, pytorch 2.11.0, float64"


def test_a_gpu_that_the_engine_does_not_use_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, H200)
    facts = device_facts(ON_CPU, chosen("auto"), document())
    assert (facts.kind, facts.model, facts.runtime) == ("cpu", "", "")
    assert str(facts) == "CPU, tensorflow 2.21.0, float64"


@pytest.mark.parametrize("device", [None, Device("cpu")])
def test_a_gpu_that_the_engine_chose_itself_is_a_gpu(device: Device | None) -> None:
    assert device_facts(ON_GPU, device, document()).kind == "cuda"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (document({"precision": "default"}, {"precision": "float64"}), "float64"),
        (document({"precision": "float32"}, {"precision": "single"}), "float32"),
        (document({"precision": "float32"}), "mixed"),
        (document({"list": [{"precision": "float32"}, {}]}, {"precision": "float32"}), "mixed"),
        (document({"list": [{}, {"precision": "double"}]}), "float64"),
        (document(mixed_precision={"output_prec": "float32"}), "mixed"),
        ({"model": {}}, "float64"),
    ],
)
def test_the_precision_is_that_of_the_networks(given: dict[str, Any], expected: str) -> None:
    assert precision(given) == expected


def trained(device: DeviceFacts | None) -> m.MemberTrained:
    ref = {"uri": "a", "sha256": "0" * 64, "size": 1}
    rmse = {"frames": 1, "energy": 0.1, "force": 0.1, "rms_force": 1.0}
    return m.MemberTrained.model_validate(
        {
            **{"id": "1", "campaign": "c", "time": 0.0, "task": "t", "attempt": 1},
            **{"version": 1, "member": 0, "steps": 10, "compressed": True, "train": rmse},
            **dict.fromkeys(("model", "frozen", "checkpoint", "lcurve"), ref),
            "device": device,
        }
    )


def test_results_without_a_device_are_written_as_before() -> None:
    """Coordinators of earlier releases refuse fields that they do not know."""
    assert b"device" not in encode(trained(None))
    facts = DeviceFacts(kind="cpu", backend="tensorflow 2.21.0", precision="float64")
    assert decode(encode(trained(facts))) == trained(facts)
    assert "on CPU, tensorflow 2.21.0, float64" in trained(facts).describe()


def test_the_status_names_the_device_of_the_newest_models(tmp_path: Path) -> None:
    store = sample_ledger.write_sample(tmp_path)
    status = CampaignView.read(store, sample_ledger.NAME).status
    assert figures(status)["trained on"] == str(sample_ledger.CPU)


class JaxJob(TrainingJob):
    """A training with JAX, whose engine reports the CPU."""

    def __init__(self, device: Device) -> None:
        self.spec: Any = SimpleNamespace(training=SimpleNamespace(backend="jax"))
        self.resources: Any = SimpleNamespace(device=device, described={})

    def _run(self, operation: str, arguments: Any) -> Any:
        return {"backend": "jax 0.11.2", "device": "cpu", "runtime": ""}


def test_jax_without_its_plugin_says_that_it_leaves_the_gpu_unused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_gpus(monkeypatch, H200)
    reason = "jax 0.11.2 cannot use NVIDIA H200; pip install 'dpstream[jax-cuda]'"
    with capture_logs() as logged:
        JaxJob(chosen("auto"))._check_device()
    assert [(each["event"], each["reason"]) for each in logged] == [("training on the CPU", reason)]
    with pytest.raises(Temporary, match=re.escape(reason)):
        JaxJob(chosen("cuda"))._check_device()
    with capture_logs() as logged:
        JaxJob(chosen("cpu"))._check_device()
    assert logged == []
