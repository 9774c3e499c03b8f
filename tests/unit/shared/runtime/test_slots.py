"""How many tasks a process has in hand: the settings, `auto`, and what each service makes of it."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.explorer import __main__ as explorer
from dpstream.services.explorer.settings import ExplorerSettings
from dpstream.services.labeler import __main__ as labeler
from dpstream.services.labeler.settings import LabelerSettings
from dpstream.services.trainer import __main__ as trainer
from dpstream.services.trainer.settings import TrainerSettings
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.errors import SpecError
from dpstream.shared.logs import configure
from dpstream.shared.messages import Explore
from dpstream.shared.runtime import machine
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.device import Device, Gpu
from dpstream.shared.runtime.slots import Capacity, Need, fitting, slots_of
from dpstream.shared.settings import WorkerSettings, read_settings
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Ref
from tests.support.log_lines import log_lines

GIB = 1024.0
H200 = Device("cuda", Gpu(0, "NVIDIA H200", 143_771, "580.159.04"))
PLENTY = Capacity(16, 128 * GIB)
EXPLORE = Explore.model_construct()


@pytest.mark.parametrize(
    ("capacity", "need", "slots"),
    [
        (Capacity(1, 4 * GIB), Need(1, GIB), 1),
        (Capacity(16, 128 * GIB), Need(1, GIB), 16),
        (Capacity(16, 128 * GIB), Need(4, GIB), 4),
        (Capacity(15, 128 * GIB), Need(4, GIB), 3),  # three threads are left over
        (Capacity(2.5, 128 * GIB), Need(1, GIB), 2),  # a quota of a container
        (Capacity(16, 5 * GIB), Need(1, GIB), 5),
        (Capacity(0.5, GIB / 2), Need(8, GIB), 1),  # too little for one: it is tried nevertheless
        (Capacity(16, 128 * GIB, 141 * GIB), Need(1, 4 * GIB, 1.1 * GIB), 16),
        (Capacity(16, 128 * GIB, 8 * GIB), Need(1, 4 * GIB, 1.1 * GIB), 7),
        (Capacity(16, 16 * GIB, 141 * GIB), Need(1, 4 * GIB, 1.1 * GIB), 4),
        (Capacity(16, 128 * GIB, 8 * GIB), Need(1, 4 * GIB), 16),  # a task that uses no GPU
    ],
)
def test_as_many_tasks_as_the_scarcest_resource_allows(
    capacity: Capacity, need: Need, slots: int
) -> None:
    assert fitting(capacity, need) == slots
    assert slots_of("auto", capacity, need) == slots
    assert slots_of("auto", capacity, need, beside=1) == max(1, slots - 1)
    assert slots_of(3, capacity, need, beside=1) == 3


# ------------------------------------------------------------------------------------ the machine


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    none = {
        "proc/self/cgroup": "0::/user.slice",
        "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
        "sys/fs/cgroup/user.slice/memory.max": "max",
    }
    for root in (tmp_path / "nothing", write(tmp_path / "unlimited", none)):
        assert machine.cores(root) == len(os.sched_getaffinity(0))
        assert 1 < machine.memory(root) < 2**30
    write(root, {"proc/meminfo": "MemTotal: 16384 kB\nMemFree: 512 kB\nMemAvailable: 4096 kB"})
    assert machine.memory(root) == 4


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7, 9, 11})
    assert machine.cores(tmp_path) == 5


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/slurm/job_7/step_0",
            "sys/fs/cgroup/slurm/job_7/cpu.max": "250000 100000",
            "sys/fs/cgroup/slurm/job_7/memory.max": str(300 * machine.MIB),
            "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000",
            "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max",
        },
        {
            "proc/self/cgroup": "0::/",  # a container with a namespace of its own
            "sys/fs/cgroup/cpu.max": "250000 100000",
            "sys/fs/cgroup/memory.max": str(300 * machine.MIB),
        },
        {
            "proc/self/cgroup": "4:memory:/docker/ab12\n2:cpu,cpuacct:/docker/ab12\n0::/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(300 * machine.MIB),
        },
        {
            "proc/self/cgroup": "4:memory:/batch/7\n2:cpu,cpuacct:/batch/7",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/batch/7/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu/batch/7/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/batch/7/memory.limit_in_bytes": str(300 * machine.MIB),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    ],
    ids=["job", "container", "older container", "older job"],
)
def test_limits_of_control_groups_count(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    root = write(tmp_path, files)
    assert (machine.cores(root), machine.memory(root)) == (2.5, 300)


# -------------------------------------------------------------------------------- the settings


def settings(kind: type[WorkerSettings], **given: Any) -> Any:
    return read_settings(kind, broker="amqp://host", store="x", **given)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_slots_are_a_number_or_auto(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_LABELER_SLOTS", value)
    with pytest.raises(SpecError) as raised:
        settings(LabelerSettings)
    assert str(raised.value) == (
        f"DPSTREAM_LABELER_SLOTS: '{value}': must be a number from 1, or auto"
    )


@pytest.mark.parametrize("value", ["3", "auto", ""])
def test_the_default_is_one_slot(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSTREAM_TRAINER_SLOTS", value)
    assert settings(TrainerSettings).trainer_slots == {"3": 3, "auto": "auto", "": 1}[value]


# -------------------------------------------------------------------------------- the services


def engine_of(resources: Any) -> ChildProcess:
    engine = resources.engine
    found: ChildProcess = engine if isinstance(engine, ChildProcess) else engine("tensorflow")
    return found


@pytest.mark.slow
def test_each_slot_has_an_engine_and_a_folder_of_its_own(tmp_path: Path) -> None:
    everything = [
        *trainer.plans(settings(TrainerSettings, trainer_slots=3), tmp_path / "trainer"),
        *labeler.plans(settings(LabelerSettings, labeler_slots=3), tmp_path / "labeler"),
        *explorer.plans(settings(ExplorerSettings, explorer_slots=3), tmp_path / "explorer"),
    ]
    engines = [engine_of(plan.resources) for plan in everything]
    assert len({id(engine) for engine in engines}) == 11
    assert len({engine.scratch for engine in engines}) == 11


def test_slots_of_an_explorer_have_the_same_file_of_a_model_until_none_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch moves trajectories together only if their models are the same files."""
    monkeypatch.setattr("dpstream.services.explorer.resources.KEPT_MODELS", 2)
    store = FolderStore(tmp_path / "store")
    context = Context(store, InProcessBus(), EXPLORE, tmp_path, "w", threading.Event())
    refs = [Ref.to(f"models/{name}.pth", name.encode()) for name in ("old", "new", "newest")]
    for ref in refs:
        store.put(ref.uri, Path(ref.uri).stem.encode())
    given = settings(
        ExplorerSettings, explorer_slots=2, explorer_queues="explore", explorer_models=".pth"
    )
    one, other = (plan.resources for plan in explorer.plans(given, tmp_path / "scratch"))
    old = one.model(refs[0], context)
    assert other.model(refs[0], context) == old
    assert other.batch is one.batch
    for ref in refs[1:]:
        one.model(ref, context)
    assert old.read_text() == "old", "the other slot keeps it"
    other.close()
    assert not old.exists()
    assert one.model(refs[1], context).read_text() == "new"
    assert one.model(refs[0], context).read_text() == "old", "downloaded once more"
    one.close()
    assert not list(old.parent.iterdir())


@pytest.mark.parametrize(
    ("queues", "slots", "served"),
    [
        ("explore,judge", 1, ["explore", "judge"]),
        ("explore,judge", 3, ["explore", "explore", "explore", "judge"]),
        ("explore", 2, ["explore", "explore"]),
        ("judge", 2, ["judge", "judge"]),
        ("judge,explore", "auto", ["explore"] * 15 + ["judge"]),
        ("screen,judge,explore", "auto", ["explore"] * 14 + ["judge", "screen"]),
        ("screen,judge", 1, ["judge", "screen"]),
    ],
)
def test_slots_of_an_explorer_are_for_trajectories(
    queues: str, slots: object, served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer, "this_process", lambda: PLENTY)
    given = settings(ExplorerSettings, explorer_queues=queues, explorer_slots=slots)
    assert explorer.queues_of_slots(given) == served


@pytest.mark.parametrize(
    ("device", "setting", "slots", "hint"),
    [
        (Device("cpu", None), 1, 1, None),
        (Device("cpu", None), "auto", 16, None),
        (H200, "auto", 16, None),
        (H200, 4, 4, None),
        (H200, 1, 1, 16),
        (Device("cuda", Gpu(0, "small", 2048, "")), 1, 1, None),  # has room for one only
    ],
)
def test_a_trainer_on_a_gpu_with_one_slot_logs_that_more_would_fit(
    device: Device,
    setting: object,
    slots: int,
    hint: int | None,
    monkeypatch: pytest.MonkeyPatch,
    log_stream: io.StringIO,
) -> None:
    configure(form="json", stream=log_stream, service="trainer")
    monkeypatch.setattr(
        trainer, "this_process", lambda gpu: Capacity(PLENTY.cores, PLENTY.memory, gpu)
    )
    assert trainer.slots(settings(TrainerSettings, trainer_slots=setting), device) == slots
    hints = [line for line in log_lines(log_stream) if "DPSTREAM_TRAINER_SLOTS" in line["event"]]
    assert [line["slots"] for line in hints] == ([] if hint is None else [hint])
