"""The worker's side of a batch: trajectories of several threads share one child process.

A thread that runs a trajectory waits while its replica advances; one more thread drives the child
in segments, between which replicas join and leave.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpstream.shared.errors import EngineCrashed, EngineError, Stopped, Stuck
from dpstream.shared.runtime.child_process import TICK_SECONDS, ChildProcess
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.device import Device

ENGINE = "dpstream.services.explorer.batched.child"


@dataclass(eq=False)
class Call:
    """One operation on a replica, and how it ended."""

    operation: str
    name: str
    arguments: Mapping[str, Any]
    seconds: float
    progressed: Callable[[], None] = lambda: None
    ended: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: Exception | None = None

    def end(self, result: Any = None, error: Exception | None = None) -> None:
        self.result, self.error = result, error
        self.ended.set()


class BatchRunner:
    """The batch of a worker process. It starts with the first replica."""

    def __init__(self, scratch: Path, threads: int, device: Device | None = None) -> None:
        self.child = ChildProcess(ENGINE, scratch, threads, device)
        # Its `put` may interrupt a `get` of the same thread, as a finalizer does.
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._advancing: dict[str, Call] = {}
        self._inside: set[str] = set()
        """Replicas that the child has."""
        self._lost: dict[str, Exception] = {}
        """Replicas that ended with their batch, and why. None of their calls reaches the child,
        where it would end those that came later."""
        self._closing = threading.Event()
        self._hung = threading.Event()
        """Set when no segment ends any more."""
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def call(
        self, operation: str, name: str, arguments: Mapping[str, Any], context: Context
    ) -> Any:
        """The result of an operation of the child on the replica `name`, within the task's time
        limit and until the task is stopped. Raises as `ChildProcess.call`; other replicas continue.
        """
        call = Call(operation, name, arguments, context.command.max_seconds, context.progressed)
        deadline = time.monotonic() + call.seconds
        self._submit(call)
        try:
            while not call.ended.wait(TICK_SECONDS):
                context.check()
                if time.monotonic() > deadline:
                    raise EngineCrashed(f"{ENGINE} took longer than the task's time limit")
        except BaseException as error:
            if isinstance(error, Stuck):
                self._hung.set()
            self.end(name)
            raise
        if call.error is not None:
            raise call.error
        return call.result

    def end(self, name: str) -> None:
        """Remove a replica, at the latest when the present segment ends."""
        if self._thread is not None:
            self._calls.put(Call("end", name, {}, TICK_SECONDS))

    def close(self) -> None:
        self._closing.set()
        self._calls.put(None)
        if self._thread is not None:
            self._thread.join()

    # ------------------------------------------------------------------------------- internals

    def _submit(self, call: Call) -> None:
        with self._starting:
            if self._thread is None:
                # Linux ends the child with the thread that started it: not that of a task.
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
        self._calls.put(call)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                asked = self._admitted()
                if self._advancing:  # without those that have left or were lost meanwhile
                    self._advance({n: asked[n] for n in asked if n in self._advancing})
        finally:
            self.child.kill()

    def _admitted(self) -> dict[str, Mapping[str, Any]]:
        """Works off the calls that wait; returns the new requests to advance. Waits for a call if
        no replica advances."""
        asked: dict[str, Mapping[str, Any]] = {}
        while True:
            try:
                call = self._calls.get(block=not self._advancing)
            except queue.Empty:
                return asked
            if call is None:
                return asked
            if call.name in self._lost:
                self._refuse(call)
                continue
            if call.operation == "advance":
                self._advancing[call.name] = call
                asked[call.name] = call.arguments
                continue
            if call.operation == "end":
                self._advancing.pop(call.name, None)
            self._perform(call)

    def _refuse(self, call: Call) -> None:
        error = self._lost[call.name]
        if call.operation == "end":
            del self._lost[call.name]
        call.end(error=error)

    def _perform(self, call: Call) -> None:
        try:
            arguments = {"name": call.name, **call.arguments}
            result = self._in_child(call.operation, arguments, call.seconds)
            if call.operation == "end":
                self._inside.discard(call.name)
            else:
                self._inside.add(call.name)
            call.end(result)
        except EngineError as error:
            call.end(error=error)
        except Exception as error:
            call.end(error=error)
            self._fail(error)

    def _advance(self, asked: Mapping[str, Any]) -> None:
        seconds = max(call.seconds for call in self._advancing.values())
        try:
            results = self._in_child("advance", {"asked": asked}, seconds)
        except Exception as error:
            self.child.kill()  # after an error within a segment, no state is certain
            self._fail(error)
            return
        for advancing in self._advancing.values():
            advancing.progressed()
        for name, result in results.items():
            call = self._advancing.pop(name, None)
            if call is not None:
                call.end(result)

    def _in_child(self, operation: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        self._hung.clear()
        return self.child.call(operation, arguments, tick=self._tick, seconds=seconds)

    def _fail(self, error: Exception) -> None:
        """End all requests to advance: the batch has ended, and its replicas are lost."""
        for call in self._advancing.values():
            call.end(error=error)
        self._advancing.clear()
        self._lost |= dict.fromkeys(self._inside, error)
        self._inside.clear()

    def _tick(self) -> None:
        if self._closing.is_set():
            raise Stopped("the worker is stopping")
        if self._hung.is_set():
            raise EngineCrashed(f"{ENGINE} hung")
