"""Engines run in a child process of their own: warm, contained, with an empty environment.

`Engine` is the parent's handle; `python -m shared.engine MODULE` is the child. The module offers
`OPERATIONS: dict[str, Callable[..., JSON]]`; with `FORK = True` every call runs in a fork of the
warm child, so that libraries which never let go of memory or global state start clean each time.
Requests and replies are JSON lines on two pipes; arrays travel as files in the scratch folder.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from shared.errors import EngineCrashed, EngineError

PINNED = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_INTRA_OP_PARALLELISM_THREADS",
    "TF_INTER_OP_PARALLELISM_THREADS",
    "DP_INTRA_OP_PARALLELISM_THREADS",
    "DP_INTER_OP_PARALLELISM_THREADS",
)
PASSED = ("PATH", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "COVERAGE_RCFILE")
TAIL = 2000


class Engine:
    """A warm child process that runs the operations of one module, one at a time."""

    def __init__(self, module: str, scratch: Path, threads: int = 1) -> None:
        """`scratch`: a private folder, the child's working directory and home."""
        self.module, self.scratch, self.threads = module, scratch, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._buffer = b""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child ahead of its first call; it imports its libraries meanwhile."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        self.scratch.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        with (self.scratch / "engine.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shared.engine", self.module, str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.scratch,
                env=self._environment(),
                pass_fds=(writing,),
            )
        os.close(writing)
        self._replies, self._buffer = reading, b""

    def call(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        tick: Callable[[], None] | None = None,
        seconds: float | None = None,
    ) -> Any:
        """Run `operation(**arguments)` in the child and return its JSON result.

        `tick` runs about once a second meanwhile; whatever it raises ends the child and passes on.
        Raises EngineError (the operation raised), EngineCrashed (the process died, or `seconds`
        of wall time were over).
        """
        self.start()
        try:
            self._send({"operation": operation, "arguments": dict(arguments)})
            reply = self._receive(tick, None if seconds is None else time.monotonic() + seconds)
        except BaseException:
            self.kill()
            raise
        if "crashed" in reply:
            raise EngineCrashed(f"{operation}: {reply['crashed']}; {self.log_tail()}")
        if "error" in reply:
            raise EngineError(reply["error"], reply["kind"], reply["trace"])
        return reply["result"]

    def kill(self) -> None:
        """End the child at once; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
        if self._replies >= 0:
            os.close(self._replies)
            self._replies = -1

    def log_tail(self) -> str:
        """The end of what the engine printed."""
        log = self.scratch / "engine.log"
        text = log.read_bytes()[-TAIL:].decode(errors="replace") if log.exists() else ""
        return " | ".join(line for line in text.splitlines()[-5:] if line.strip())

    def _environment(self) -> dict[str, str]:
        """Nothing of the parent's secrets: no broker URL, no cloud keys."""
        kept = {name: os.environ[name] for name in PASSED if name in os.environ}
        pinned = {name: str(self.threads) for name in PINNED}
        return kept | pinned | {"HOME": str(self.scratch), "TF_CPP_MIN_LOG_LEVEL": "3"}

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineCrashed(f"{self.module} died; {self.log_tail()}") from error

    def _receive(self, tick: Callable[[], None] | None, deadline: float | None) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], 1.0)
            if ready:
                data = os.read(self._replies, 1 << 16)
                if not data:
                    raise EngineCrashed(f"{self.module} died; {self.log_tail()}")
                self._buffer += data
            if tick is not None:
                tick()
            if deadline is not None and time.monotonic() > deadline:
                raise EngineCrashed(f"{self.module} took longer than its time limit")
        line, self._buffer = self._buffer.split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _answer(operation: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"result": operation(**arguments)}
    except Exception as error:
        return {
            "error": str(error) or type(error).__name__,
            "kind": type(error).__name__,
            "trace": traceback.format_exc()[-TAIL * 2 :],
        }


def _answer_in_fork(operation: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        die_with_parent()
        os.write(writing, json.dumps(_answer(operation, arguments)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if not data:
        return {"crashed": f"ended with status {os.waitstatus_to_exitcode(status)}"}
    reply: dict[str, Any] = json.loads(data)
    return reply


def _serve(module_name: str, replies: int) -> NoReturn:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    module = importlib.import_module(module_name)
    answer = _answer_in_fork if getattr(module, "FORK", False) else _answer
    for line in sys.stdin.buffer:
        request = json.loads(line)
        reply = answer(module.OPERATIONS[request["operation"]], request["arguments"])
        os.write(replies, json.dumps(reply).encode() + b"\n")
    sys.exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
