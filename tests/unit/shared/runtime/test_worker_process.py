"""The workers of one process: how they end, and what the process then says."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpstream.services.coordinator.fleet.memory import DECLINED
from dpstream.services.explorer.__main__ import EXPLORER
from dpstream.services.labeler.__main__ import LABELER
from dpstream.services.trainer.__main__ import TRAINER
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import decode
from dpstream.shared.errors import BusError, DpstreamError, Refused, SpecError
from dpstream.shared.runtime import process, retry
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.context import Unserved
from dpstream.shared.runtime.device import Device, Gpu
from dpstream.shared.runtime.exit_limits import MOST_DECLINED, ExitLimits
from dpstream.shared.runtime.process import (
    BAD_INPUT,
    GAVE_BACK,
    Useless,
    WorkerPlan,
    WorkerService,
    WorkerThreads,
    _end_on_ctrl_c,
    main,
)
from dpstream.shared.settings import WorkerSettings, variables
from tests.support.adapters.faulty_adapters import FlakyBus
from tests.support.workers.nvml import A100, DRIVER, H200, has_gpus
from tests.support.workers.worker import PROMPT, WorkerHarness, label, patient, succeed

pytestmark = pytest.mark.slow


class Bench:
    def __init__(self) -> None:
        self.running = False

    def start(self) -> None:
        self.running = True

    def close(self) -> None:
        self.running = False


TWO_PLANS = (("label.toy",), ("label.a", "label.b"))
SLOTS = (("label.toy",),) * 3


class Office:
    """A crew at work in a thread, on the broker and store."""

    def __init__(
        self,
        workers: WorkerHarness,
        handler: Any,
        bus: Any = None,
        device: Device | None = None,
        queues: Sequence[tuple[str, ...]] = TWO_PLANS,
        make: Callable[[int], Any] = lambda number: Bench(),
        unserved: Unserved = lambda resources, command, context: None,
        **settings: Any,
    ) -> None:
        given = WorkerSettings(broker="amqp://host", store="x", **settings)  # type: ignore[arg-type]
        plans = [
            WorkerPlan(served, {m.Label: handler}, make(number), device=device, unserved=unserved)
            for number, served in enumerate(queues)
        ]
        self.crew = WorkerThreads("lab", plans, workers.folder, given)
        self.stopping = threading.Event()
        self.status: int | None = None
        self.error: DpstreamError | None = None
        arguments = (bus or InProcessBus(workers.broker), workers.store, self.stopping)
        self.thread = threading.Thread(target=self._work, args=arguments, daemon=True)
        self.thread.start()

    def _work(self, *arguments: Any) -> None:
        try:
            self.status = self.crew.work(*arguments)
        except SpecError as error:
            self.error = error

    def end(self) -> int | None:
        self.thread.join(PROMPT)
        return self.status


def test_a_crew_asked_to_stop_ends_well(workers: WorkerHarness) -> None:
    office = Office(workers, succeed)
    workers.send(label())
    workers.next_event(), workers.next_event()
    assert [post.resources.running for post in office.crew.plans] == [True, True]
    assert [worker.name for worker in office.crew.workers] == ["lab.0", "lab.1"]
    assert office.crew.trouble() is None
    office.stopping.set()
    assert office.end() == 0
    office.crew.close()
    assert [post.resources.running for post in office.crew.plans] == [False, False]


def test_a_process_announces_itself_and_names_itself_in_its_messages(
    workers: WorkerHarness,
) -> None:
    office = Office(workers, succeed, process="cpu-1-0", pool="cpu")
    delivery = workers.events.next(PROMPT)
    assert delivery is not None
    started = decode(delivery.body)
    assert isinstance(started, m.WorkerStarted)
    assert (started.worker, started.process, started.pool) == ("lab", "cpu-1-0", "cpu")
    assert (started.slots, started.queues) == (2, ("label.toy", "label.a", "label.b"))
    workers.send(label())
    assert workers.next_event().process == "cpu-1-0"
    workers.next_event()
    office.stopping.set()
    assert office.end() == 0


def test_a_trainer_announces_itself_as_one(workers: WorkerHarness) -> None:
    office = Office(workers, succeed, queues=(("train",),))
    delivery = workers.events.next(PROMPT)
    assert delivery is not None
    assert isinstance(decode(delivery.body), m.TrainerStarted)
    office.stopping.set()
    assert office.end() == 0


@pytest.mark.parametrize(
    ("device", "names"),
    [
        (None, ("NVIDIA H200", A100.name)),
        (Device("cpu"), ()),
        (Device("cuda", Gpu(1, A100.name, 40960, DRIVER, A100.uuid)), (A100.name,)),
    ],
)
def test_a_process_announces_the_gpus_that_its_engines_may_use(
    workers: WorkerHarness,
    monkeypatch: pytest.MonkeyPatch,
    device: Device | None,
    names: tuple[str, ...],
) -> None:
    has_gpus(monkeypatch, H200, A100)
    office = Office(workers, succeed, device=device)
    delivery = workers.events.next(PROMPT)
    assert delivery is not None
    started = decode(delivery.body)
    assert isinstance(started, m.WorkerStarted)
    assert started.devices == names
    workers.send(label())
    workers.next_event(), workers.next_event()
    office.stopping.set()
    assert office.end() == 0


def test_a_process_that_may_not_announce_itself_works_all_the_same(
    workers: WorkerHarness,
) -> None:
    """The broker's rights may be those of an earlier release."""

    class Strict(FlakyBus):
        def publish(self, messages: Any) -> None:
            if any("worker-started" in (message.topic or "") for message in messages):
                raise Refused("access to topic '-.worker-started' refused")
            super().publish(messages)

    office = Office(workers, succeed, Strict(InProcessBus(workers.broker), lambda operation: False))
    workers.send(label())
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]
    office.stopping.set()
    assert office.end() == 0


def test_a_worker_that_dies_takes_the_process_with_it(workers: WorkerHarness) -> None:
    class Broken(FlakyBus):
        def consume(self, queue: str, prefetch: int = 1) -> Any:
            if queue == "label.b":
                raise RuntimeError("a fault of ours")
            return super().consume(queue, prefetch)

    office = Office(workers, succeed, Broken(InProcessBus(workers.broker), lambda operation: False))
    assert office.end() == 1
    assert office.crew.trouble() == "a worker died"


def test_a_task_that_does_not_let_go_is_left_to_its_lease(workers: WorkerHarness) -> None:
    working, go_on = threading.Event(), threading.Event()

    def deaf(resources: Any, command: Any, context: Any) -> Any:
        working.set()
        assert go_on.wait(PROMPT)
        return succeed(resources, command, context)

    office = Office(workers, deaf, grace=1.0)
    workers.send(label())
    assert working.wait(PROMPT)
    office.stopping.set()
    assert office.end() == 1
    go_on.set()
    for thread in office.crew.threads:
        thread.join(PROMPT)


def test_a_stuck_task_is_no_life(workers: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.worker.GRACE", -60.0)  # label() has 60 s
    told: list[str | None] = []

    def handler(resources: Any, command: Any, context: Any) -> Any:
        told.append(office.crew.trouble())
        return succeed(resources, command, context)

    office = Office(workers, handler)
    workers.send(label())
    workers.next_event(), workers.next_event()
    office.stopping.set()
    assert office.end() == 0
    assert told == ["a task is stuck: still running long after the task's time limit"]


def test_a_task_given_back_is_exit_status_75(workers: WorkerHarness) -> None:
    office = Office(workers, patient)
    workers.send(label())
    workers.next_event()
    office.stopping.set()
    assert office.end() == GAVE_BACK == 75
    assert isinstance(workers.next_event(), m.TaskReleased)


def test_a_stuck_task_is_aborted_at_its_next_check(
    workers: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.worker.GRACE", -60.0)  # label() has 60 s
    office = Office(workers, patient)
    workers.send(label())
    assert workers.next_types(1) == [m.TaskClaimed]
    failed = workers.next_event()
    assert isinstance(failed, m.TaskFailed)
    assert "long after the task's time limit" in failed.reason
    office.stopping.set()
    assert office.end() == 0


def test_a_worker_that_cannot_be_freed_ends_the_process_and_the_others_release(
    workers: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.worker.GRACE", -60.0)
    monkeypatch.setattr("dpstream.shared.runtime.process.FREEING_SECONDS", 0.2)
    go_on = threading.Event()

    def deaf(resources: Any, command: Any, context: Any) -> Any:
        if command.capability != "toy":
            context.stopping.wait(PROMPT)
            return patient(resources, command, context)
        assert go_on.wait(PROMPT)
        return succeed(resources, command, context)

    office = Office(workers, deaf, grace=2.0)
    workers.send(label(), label("t2").model_copy(update={"capability": "a", "max_seconds": 999.0}))
    assert office.end() == 1
    go_on.set()
    kinds = workers.next_types(4)
    assert m.TaskReleased in kinds
    for thread in office.crew.threads:
        thread.join(PROMPT)


def test_refused_rights_end_the_process(
    workers: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.retry.REFUSED_SECONDS", 0.3)

    class Foreign(FlakyBus):
        def consume(self, queue: str, prefetch: int = 1) -> Any:
            raise Refused("ACCESS_REFUSED - access to queue 'label.toy' refused")

    crew = WorkerThreads(
        "lab",
        [WorkerPlan(("label.toy",), {m.Label: succeed}, Bench())],
        workers.folder,
        WorkerSettings(broker="amqp://host", store="x"),  # type: ignore[arg-type]
    )
    bus = Foreign(InProcessBus(workers.broker), lambda operation: False)
    with pytest.raises(Refused, match=r"label\.toy"):
        crew.work(bus, workers.store, threading.Event())
    with pytest.raises(BusError, match="ACCESS_REFUSED"):
        crew.check_rights()


def test_a_handler_that_is_refused_releases_its_task_and_ends_the_process(
    workers: WorkerHarness,
) -> None:
    def refused(resources: Any, command: Any, context: Any) -> Any:
        raise Refused("AccessDenied: labels/x")

    crew = WorkerThreads(
        "lab",
        [WorkerPlan(("label.toy",), {m.Label: refused}, Bench())],
        workers.folder,
        WorkerSettings(broker="amqp://host", store="x"),  # type: ignore[arg-type]
    )
    workers.send(label())
    with pytest.raises(Refused, match="AccessDenied"):
        crew.work(InProcessBus(workers.broker), workers.store, threading.Event())
    assert workers.next_types(2) == [m.TaskClaimed, m.TaskReleased]


def test_a_second_sigterm_changes_nothing_and_a_second_ctrl_c_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("dpstream.shared.runtime.process.end_at_once", ended.append)
    _end_on_ctrl_c(signal.SIGTERM)
    assert ended == []
    _end_on_ctrl_c(signal.SIGINT)
    assert ended == [signal.SIGINT]


def test_a_shift_is_the_whole_crews(workers: WorkerHarness) -> None:
    workers.send(*(label(f"t{n}") for n in range(3)))
    office = Office(workers, succeed, max_tasks=2)
    assert office.end() == 0
    assert workers.next_types(4).count(m.LabelsDone) == 2


# ------------------------------------------------------------------------------------------ slots


class ToyEngine:
    """A slot's engine: the toy child process."""

    def __init__(self, scratch: Path) -> None:
        self.engine = ChildProcess("tests.support.workers.toy_child", scratch)

    def start(self) -> None:
        self.engine.start()

    def close(self) -> None:
        self.engine.kill()


def toy_office(workers: WorkerHarness, handler: Any, **settings: Any) -> Office:
    """Three slots with an engine each."""

    def make(number: int) -> ToyEngine:
        return ToyEngine(workers.folder / f"slot-{number}")

    return Office(workers, handler, queues=SLOTS, make=make, **settings)


def events_until(workers: WorkerHarness, count: int, kind: type[m.Message]) -> list[Any]:
    """Events up to the last of `count` of a kind."""
    found: list[Any] = []
    while sum(isinstance(event, kind) for event in found) < count:
        found.append(workers.next_event())
    return found


def test_slots_have_tasks_in_hand_at_once_and_all_release_theirs(workers: WorkerHarness) -> None:
    """Each has a claim and heartbeats under a name of its own; the process is the same."""
    office = Office(
        workers, patient, queues=SLOTS, process="gpu-1-0", task_heartbeat=0.05, grace=10.0
    )
    workers.send(*(label(f"t{n}") for n in range(4)))
    claims = [e for e in events_until(workers, 3, m.TaskClaimed) if isinstance(e, m.TaskClaimed)]
    assert {claim.worker for claim in claims} == {"lab.0", "lab.1", "lab.2"}
    assert {claim.process for claim in claims} == {"gpu-1-0"}
    beats: set[tuple[str, str]] = set()
    while len(beats) < 3:
        event = workers.next_event()
        beats |= {(event.worker, event.task)} if isinstance(event, m.TaskHeartbeat) else set()
    assert beats == {(claim.worker, claim.task) for claim in claims}
    sample = office.crew.metrics.registry.get_sample_value
    assert (sample("dpstream_worker_busy"), sample("dpstream_worker_slots")) == (3, 3)
    office.stopping.set()
    assert office.end() == GAVE_BACK
    released = events_until(workers, 3, m.TaskReleased)
    tasks = {event.task for event in released if isinstance(event, m.TaskReleased)}
    assert tasks == {claim.task for claim in claims}
    assert workers.bus.depth("label.toy") == 1
    assert sample("dpstream_worker_busy") == 0


def test_an_engine_that_crashes_costs_its_slot_only(workers: WorkerHarness) -> None:
    """The other tasks go on in their children; the slot starts a new one for its next task."""
    pids: dict[str, list[int]] = {}
    go_on = threading.Event()

    def handler(resources: ToyEngine, command: m.Label, context: Any) -> Any:
        call = resources.engine.call
        pids.setdefault(context.worker, []).append(call("pid", {}))
        if command.task == "bad":
            call("die", {}, tick=context.check)
        while command.task in ("t1", "t2") and not go_on.is_set():
            call("sleep", {"seconds": 0.05}, tick=context.check)
        pids[context.worker].append(call("pid", {}))
        return succeed(resources, command, context)

    office = toy_office(workers, handler)
    workers.send(label("t1"), label("t2"))
    events_until(workers, 2, m.TaskClaimed)
    workers.send(label("bad"))
    assert workers.next_types(2) == [m.TaskClaimed, m.TaskFailed]
    workers.send(label("next"))
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]
    go_on.set()
    assert workers.next_types(2) == [m.LabelsDone, m.LabelsDone]
    office.stopping.set()
    assert office.end() == 0
    office.crew.close()
    assert sorted(len(set(seen)) for seen in pids.values()) == [1, 1, 2]
    assert len({pid for seen in pids.values() for pid in seen}) == 4


def test_a_stuck_task_is_aborted_and_the_other_slots_go_on(
    workers: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.worker.GRACE", -900.0)
    office = toy_office(workers, patient)
    unhurried = [label(f"t{n}").model_copy(update={"max_seconds": 9999.0}) for n in range(2)]
    workers.send(*unhurried, label("stuck"))
    events = events_until(workers, 1, m.TaskFailed)
    assert [type(event) for event in events].count(m.TaskClaimed) == 3
    assert events[-1].task == "stuck"
    assert sum(worker._context is not None for worker in office.crew.workers) == 2
    office.stopping.set()
    assert office.end() == GAVE_BACK
    office.crew.close()


def test_what_one_slot_learned_of_a_task_keeps_the_others_from_beginning_it() -> None:
    limits = ExitLimits(lifetime=100.0)
    assert limits.admit(m.Label)
    limits.learn(m.Label, 300.0)
    limits.release(worked=True)
    assert not limits.admit(m.Label)


def test_a_process_that_was_idle_for_long_leaves_as_a_whole() -> None:
    """After one worker has left, the others take no more: with fewer slots than the fleet counts,
    the process would go on for as long as there are tasks."""
    limits = ExitLimits(idle_exit=0.0)
    assert limits.over
    assert not limits.admit()


def test_one_working_slot_keeps_the_idle_ones(workers: WorkerHarness) -> None:
    go_on = threading.Event()

    def handler(resources: Any, command: Any, context: Any) -> Any:
        assert command.task != "long" or go_on.wait(PROMPT)
        return succeed(resources, command, context)

    office = Office(workers, handler, queues=SLOTS, idle_exit=0.3)
    workers.send(label("long"))
    assert workers.next_types(1) == [m.TaskClaimed]
    assert not go_on.wait(0.6)
    assert [thread.is_alive() for thread in office.crew.threads] == [True] * 3
    workers.send(label("short"))
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]
    go_on.set()
    assert workers.next_types(1) == [m.LabelsDone]
    assert office.end() == 0


def test_a_process_that_leaves_when_idle_ends_with_the_reason_if_it_declines_everything(
    workers: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_REST", 0.01)
    workers.send(*(label("t1") for _ in range(MOST_DECLINED)))
    office = Office(
        workers,
        succeed,
        queues=SLOTS[:1],
        unserved=lambda resources, command, context: "no toy here",
        idle_exit=600.0,
    )
    assert office.end() is None
    assert str(office.error) == "every task was declined: no toy here"
    assert isinstance(office.error, Useless)


@pytest.mark.usefixtures("log_stream")  # main configures logging
def test_a_worker_that_declines_everything_has_an_exit_status_of_its_own(
    service: WorkerService[WorkerSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def useless(*_: object) -> int:
        raise Useless("every task was declined: no toy here")

    monkeypatch.setenv("DPSTREAM_BROKER", "amqp://u:p@host")
    monkeypatch.setenv("DPSTREAM_STORE", "x")
    monkeypatch.setattr(process, "_run", useless)
    assert str(main(service, [])) == DECLINED
    assert capsys.readouterr().err == "toy: every task was declined: no toy here\n"


@pytest.mark.parametrize(("idle_exit", "asked"), [(None, True), (600.0, True), (0.3, False)])
def test_a_process_that_is_asked_to_stop_or_was_of_use_ends_well(
    workers: WorkerHarness,
    monkeypatch: pytest.MonkeyPatch,
    idle_exit: float | None,
    asked: bool,
) -> None:
    monkeypatch.setattr(retry, "FIRST_REST", 0.01)
    answers = iter([None] if not asked else [])

    def unserved(resources: Any, command: Any, context: Any) -> str | None:
        return next(answers, "no toy here")

    workers.send(label("t1"))
    office = Office(workers, succeed, queues=SLOTS[:1], unserved=unserved, idle_exit=idle_exit)
    if asked:
        assert workers.next_types(1) == [m.TaskDeclined]
        office.stopping.set()
    else:
        assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]
        workers.send(label("t2"))
        assert workers.next_types(1) == [m.TaskDeclined]
    assert office.end() == 0


def test_a_worker_without_a_limit_stays_although_it_declines_everything() -> None:
    for idle_exit in (None, 600.0):
        limits = ExitLimits(idle_exit=idle_exit)
        for _ in range(MOST_DECLINED):
            assert not limits.over
            limits.decline("t1", "no toy here")
        assert limits.over == (idle_exit is not None)


def test_a_worker_stays_until_the_first_declined_task_is_there_again() -> None:
    limits = ExitLimits(idle_exit=600.0)
    assert not any(limits.decline(f"t{number}", "no toy here") for number in range(50))
    assert not limits.over
    assert limits.decline("t0", "no toy here")
    assert limits.over


def test_declined_tasks_are_forgotten_when_one_was_worked_on() -> None:
    limits = ExitLimits(idle_exit=600.0)
    for _ in range(5):
        for _ in range(MOST_DECLINED - 1):
            limits.decline("t1", "no toy here")
        assert limits.admit()
        limits.release(worked=True)
        assert not limits.over
    assert limits.declined_all is None


def test_a_task_behind_others_that_it_declines_is_served(
    workers: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_REST", 0.01)

    def unserved(resources: Any, command: Any, context: Any) -> str | None:
        return None if command.task == "served" else "no toy here"

    workers.send(*(label(f"t{number}") for number in range(MOST_DECLINED + 2)), label("served"))
    office = Office(workers, succeed, queues=SLOTS[:1], unserved=unserved, idle_exit=1.0)
    declined = [m.TaskDeclined] * (MOST_DECLINED + 2)
    assert workers.next_types(MOST_DECLINED + 4) == [*declined, m.TaskClaimed, m.LabelsDone]
    assert office.end() == 0


def test_a_process_announces_its_slots_and_each_queue_once(workers: WorkerHarness) -> None:
    office = Office(workers, succeed, queues=(*SLOTS, ("label.a",)))
    delivery = workers.events.next(PROMPT)
    assert delivery is not None
    started = decode(delivery.body)
    assert isinstance(started, m.WorkerStarted)
    assert (started.slots, started.queues) == (4, ("label.toy", "label.a"))
    office.stopping.set()
    assert office.end() == 0


# ------------------------------------------------------------------------------- the command line


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> WorkerService[WorkerSettings]:
    monkeypatch.delenv("DPSTREAM_BROKER", raising=False)
    monkeypatch.delenv("DPSTREAM_STORE", raising=False)
    return WorkerService("toy", "Plays.", WorkerSettings, lambda settings, scratch: [])


def test_help_teaches_every_variable(
    service: WorkerService[WorkerSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(service, ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for variable, text in variables(WorkerSettings):
        assert f"  {variable}\n      {text}\n" in said
    assert "--max-tasks N" in said
    assert "--idle-exit SECONDS" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "toy: DPSTREAM_BROKER: missing"),
        (["--max-tasks", "none"], "toy: DPSTREAM_MAX_TASKS: 'none': must be a valid integer"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_status_2(
    service: WorkerService[WorkerSettings],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    if arguments:
        monkeypatch.setenv("DPSTREAM_BROKER", "amqp://u:p@host")
        monkeypatch.setenv("DPSTREAM_STORE", "x")
    assert main(service, arguments) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


@pytest.mark.usefixtures("log_stream")  # main configures logging
@pytest.mark.parametrize("service", [TRAINER, EXPLORER, LABELER], ids=lambda each: each.name)
def test_a_gpu_that_is_not_there_is_exit_status_2(
    service: WorkerService[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    has_gpus(monkeypatch, H200)
    monkeypatch.setenv("DPSTREAM_BROKER", "amqp://u:p@127.0.0.1:9")
    monkeypatch.setenv("DPSTREAM_STORE", str(tmp_path))
    monkeypatch.setenv("DPSTREAM_DEVICE", "cuda:1")
    assert main(service, ["--idle-exit", "0.3"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "DPSTREAM_DEVICE: 'cuda:1': only cuda:0 is visible (NVIDIA H200)" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("log_stream")
def test_a_worker_that_reaches_no_broker_ends_after_its_idle_time(
    service: WorkerService[WorkerSettings],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DPSTREAM_BROKER", "amqp://u:p@127.0.0.1:9")
    monkeypatch.setenv("DPSTREAM_STORE", str(tmp_path))
    assert main(service, ["--idle-exit", "0.3"]) == BAD_INPUT
    assert "127.0.0.1:9" in capsys.readouterr().err
