"""Runs an engine in a child process, so that a crash of the engine does not end the worker.

`ChildProcess` is the parent's handle; `serve` runs in the child. The child is confined to the
worker's private folder (`confinement`). It keeps its libraries loaded between calls, inherits no
secrets from the environment, and imports modules from its parent's path but never from its working
directory, whose files are data. The engine module defines
`OPERATIONS: dict[str, Callable[..., JSON]]`; with `FORK = True` every call runs in a fork of the
child, for libraries that never release memory or global state and for input that is not trusted: a
fork may be limited in processor time, memory and size of files. Requests and replies are JSON lines
on two pipes; arrays are passed as files in the scratch folder. An operation calls `progressed`
whenever it has completed a step of its work.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from dpstream.shared.environment import passed_environment
from dpstream.shared.errors import (
    EngineCrashed,
    EngineError,
    EngineKilled,
    MachineFault,
    Permanent,
)
from dpstream.shared.runtime.confinement import landlock
from dpstream.shared.runtime.confinement.children import confined
from dpstream.shared.runtime.confinement.files import open_inside
from dpstream.shared.runtime.device import Device, cudart_folder
from dpstream.shared.runtime.machine_faults import is_machines_fault
from dpstream.shared.runtime.scratch import enclosing

PINNED = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_INTRA_OP_PARALLELISM_THREADS",
    "TF_INTER_OP_PARALLELISM_THREADS",
    "DP_INTRA_OP_PARALLELISM_THREADS",
    "DP_INTER_OP_PARALLELISM_THREADS",
)
QUICK = {
    # Keras 3, which DeePMD-kit does not use, takes a third of TensorFlow's import time.
    "TF_USE_LEGACY_KERAS": "1",
    # PyTorch would start four more processes to load data, whatever the number of threads.
    "NUM_WORKERS": "0",
}
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Statuses of a killed process, started directly or by a launcher such as bubblewrap or mpirun."""
YIELD_SECONDS = 2.0
"""Time for the worker's own stop signal to arrive after an engine ended abnormally. A batch system
signals all processes of a job, and the engine may end first."""
CHILD = (
    sys.executable,
    "-I",
    "-u",
    "-Xfaulthandler",
    "-c",
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from dpstream.shared.runtime.child_process import serve; serve()",
)
"""Isolated mode: nothing is imported from the working directory or home. Output goes to the log."""
TICK_SECONDS = 1.0
"""Interval at which `tick` is called while a caller waits for a reply."""

UNCONFINED = os.EX_CONFIG
"""Status of a child that could not be confined."""
LOG = "engine.log"
TAIL = 2000
MAX_REPLY = 16 * 1024 * 1024
"""Bytes; arrays are passed as files, so a longer reply is an error."""


@dataclass(frozen=True)
class Limits:
    """What one call in a fork may use: `seconds` of processor time, bytes of `memory` beyond those
    of the idle child, and bytes of each `file` that it writes."""

    seconds: float
    memory: int
    file: int


def await_stop(tick: Callable[[], None]) -> None:
    """Call `tick` for `YIELD_SECONDS`; it raises `Stopped` if the worker is to stop as well."""
    deadline = time.monotonic() + YIELD_SECONDS
    while time.monotonic() < deadline:
        tick()
        time.sleep(0.05)


def out_of_memory(program: str) -> str:
    """Reason of `EngineKilled`, with the pool of workers or the machine that it concerns."""
    place = os.environ.get("DPSTREAM_POOL") or socket.gethostname()
    return f"{program} was killed, probably because it ran out of memory on {place}"


class ChildProcess:
    """A warm child process that runs the operations of one module, one at a time."""

    def __init__(
        self,
        module: str,
        scratch: Path,
        threads: int = 1,
        device: Device | None = None,
        renew_after: int | None = None,
        reads: Collection[Path] = (),
        links: bool = False,
    ) -> None:
        """`scratch`: a private folder, used as the child's working directory and home; `device`:
        the only one that the child sees, None: those that this process sees; `renew_after`: calls
        after which a new child is started, for libraries whose memory grows; `reads`: folders that
        the child may read besides, `links`: whether it may make symbolic links (`confined`)."""
        self.module, self.scratch, self.threads = module, scratch, threads
        self.device, self.renew_after = device, renew_after
        self.reads, self.links = reads, links
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._buffer = bytearray()
        self._number = 0
        self._calls = 0
        """Of the present child."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child before its first call, so that it can import its libraries meanwhile.

        Linux ends the child with the *thread* that started it (see `die_with_parent`), so start
        it from a thread that outlives it. Raises MachineFault if its GPU is lost.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        if self.device is not None:
            self.device.check_present()
        within = enclosing(self.scratch.absolute())
        limits = confined(within, reads=self.reads, links=self.links)
        with open(self._log(), "ab") as log, limits as (prefix, rulesets):
            reading, writing = os.pipe()
            own = (self.module, str(writing), ",".join(map(str, rulesets)))
            self._process = subprocess.Popen(
                [*prefix, *CHILD, *own, *map(os.path.abspath, sys.path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.scratch,
                env=self._environment(),
                pass_fds=(writing, *rulesets),
                start_new_session=True,  # whatever the child starts is killed with it
            )
        os.close(writing)
        self._replies, self._buffer = reading, bytearray()

    def _log(self) -> int:
        """Descriptor of the log, in a folder of its own. A child that made links has ended."""
        log = self.scratch / LOG
        for path in (self.scratch, log):
            if path.is_symlink():
                path.unlink()
        self.scratch.mkdir(parents=True, exist_ok=True)
        return open_inside(log, self.scratch.absolute(), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def call(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        tick: Callable[[], None] | None = None,
        seconds: float | None = None,
        progressed: Callable[[], None] | None = None,
        limits: Limits | None = None,
    ) -> Any:
        """Run `operation(**arguments)` in the child and return its JSON result.

        Meanwhile `tick` is called about once a second; its exceptions kill the child and propagate.
        `progressed` is called for each step that the operation reports. `limits` need a module with
        `FORK = True`. Raises EngineError if the operation raised; MachineFault if it raised because
        of its machine, after ending the child, whose CUDA context may be unusable; EngineCrashed if
        the process died or the call took more than `seconds` of wall time; and EngineKilled if
        something else killed it; Permanent if the child could not be confined. A call with `limits`
        blames no machine: EngineError for all that the operation raises.
        """
        if self._calls == self.renew_after:
            self.kill()
        self.start()
        self._number += 1
        self._calls += 1
        request = {"number": self._number, "operation": operation, "arguments": dict(arguments)}
        if limits is not None:
            request["limits"] = asdict(limits)
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            self._send(request)
            reply = self._receive(tick, deadline, progressed)
        except EngineCrashed as error:
            try:
                status = self._status()
                if status == UNCONFINED and self._calls == 1:
                    raise Permanent(f"{self.module}: {self.log_tail()}") from error
                raise self._crash(str(error), status, tick) from error
            finally:
                self.kill()
        except BaseException:
            self.kill()
            raise
        if "crashed" in reply:
            text = f"{operation}: ended with status {reply['crashed']}; {self.log_tail()}"
            raise self._crash(text, reply["crashed"], tick)
        if "error" in reply:
            text, kind = str(reply["error"]), str(reply.get("kind", ""))
            raise self._error(text, kind, str(reply.get("trace", "")), limits)
        return reply["result"]

    def _error(
        self, text: str, kind: str, trace: str, limits: Limits | None
    ) -> EngineError | MachineFault:
        """The exception of an operation."""
        if limits is not None or not is_machines_fault(kind, text):
            return EngineError(text, kind, trace)
        self.kill()
        return MachineFault(f"{kind}: {text}")

    def _status(self) -> int | None:
        """How the child ended; None if it runs."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        return self._process.returncode

    def _crash(
        self, text: str, status: int | None, tick: Callable[[], None] | None
    ) -> EngineCrashed:
        """The crash of the child or of a fork that ended with `status`. `tick` may raise `Stopped`
        instead."""
        if status is not None and tick is not None:
            await_stop(tick)
        if status in KILLED:
            return EngineKilled(f"{out_of_memory(self.module)}; {self.log_tail()}")
        return EngineCrashed(text, status)

    def kill(self) -> None:
        """Kill the child; the next call starts a new one."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._calls = 0
            if self._process.stdin is not None:
                with suppress(BrokenPipeError):  # the child read only part of a request
                    self._process.stdin.close()
            self._process = None
        if self._replies >= 0:
            os.close(self._replies)
            self._replies = -1

    def log_tail(self) -> str:
        """The last lines of the engine's output."""
        try:
            descriptor = open_inside(self.scratch / LOG, self.scratch.absolute())
        except (OSError, Permanent):
            return ""
        with open(descriptor, "rb") as log:
            log.seek(max(0, os.fstat(descriptor).st_size - TAIL))
            text = log.read().decode(errors="replace")
        return " | ".join(line for line in text.splitlines()[-5:] if line.strip())

    def _environment(self) -> dict[str, str]:
        """The child's environment, without the parent's secrets (broker URL, cloud keys)."""
        passed = passed_environment()
        own = {name: str(self.threads) for name in PINNED} | QUICK | homes(self.scratch)
        # Warnings, such as that of a GPU that TensorFlow cannot use, go to the engine's log.
        own["TF_CPP_MIN_LOG_LEVEL"] = "1"
        cudart = cudart_folder()
        if cudart is not None:
            given = passed.get("LD_LIBRARY_PATH")
            own["LD_LIBRARY_PATH"] = f"{given}:{cudart}" if given else str(cudart)
        return passed | own | (self.device.environment() if self.device else {})

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineCrashed(f"{self.module} died; {self.log_tail()}") from error

    def _receive(
        self,
        tick: Callable[[], None] | None,
        deadline: float | None,
        progressed: Callable[[], None] | None,
    ) -> dict[str, Any]:
        while not self._buffer.endswith(b"\n"):
            left = TICK_SECONDS
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            if left <= 0:
                raise EngineCrashed(f"{self.module} took longer than its time limit")
            ready, _, _ = select.select([self._replies], [], [], left)
            if ready:
                self._read()
                if self._drop_steps() and progressed is not None:
                    progressed()
            if tick is not None:
                tick()
        line, self._buffer = bytes(self._buffer), bytearray()
        return self._checked(line)

    def _read(self) -> None:
        data = os.read(self._replies, 1 << 16)
        if not data:
            raise EngineCrashed(f"{self.module} died; {self.log_tail()}")
        self._buffer += data
        if len(self._buffer) > MAX_REPLY:
            raise EngineCrashed(f"{self.module} replied more than {MAX_REPLY} bytes")

    def _drop_steps(self) -> bool:
        """Remove the empty lines before a reply, which report steps; whether there were any."""
        reply = self._buffer.lstrip(b"\n")
        reported = len(reply) < len(self._buffer)
        self._buffer = reply
        return reported

    def _checked(self, line: bytes) -> dict[str, Any]:
        """The reply. Raises EngineCrashed if it is garbled or answers another request."""
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EngineCrashed(f"{self.module} replied {line[:100]!r}, not JSON") from error
        if not isinstance(reply, dict) or reply.get("number") != self._number:
            raise EngineCrashed(f"{self.module} replied {line[:100]!r} to request {self._number}")
        if not reply.keys() & {"result", "error", "crashed"}:
            raise EngineCrashed(f"{self.module} replied {line[:100]!r}, which is not a reply")
        return reply


def homes(folder: Path) -> dict[str, str]:
    """Variables by which programs find a home and a place for temporary files: a folder of their
    own, because no other one is theirs."""
    return dict.fromkeys(("HOME", "TMPDIR"), str(folder))


_STEPS: list[int] = []
"""In the child: the pipe on which it reports steps."""
_LIBC = ctypes.CDLL(None)  # loaded before any fork: loading between fork and exec is unsafe


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL)


def _answer(module: types.ModuleType, request: Mapping[str, Any]) -> bytes:
    """The reply to one request, as a JSON line."""
    try:
        operation = module.OPERATIONS[request["operation"]]
        return _reply(request, result=operation(**request["arguments"]))
    except Exception as error:
        return _reply(
            request,
            error=str(error) or type(error).__name__,
            kind=type(error).__name__,
            trace=traceback.format_exc()[-TAIL * 2 :],
        )


def _answer_in_fork(module: types.ModuleType, request: Mapping[str, Any]) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            if "limits" in request:
                _limit(Limits(**request["limits"]))
            _write(writing, _answer(module, request))
        finally:  # even after an exception, the fork must not return to the caller's loop
            os._exit(0)
    os.close(writing)
    data = bytearray()
    while len(data) <= MAX_REPLY and (part := os.read(reading, 1 << 16)):
        data += part
    os.close(reading)  # which ends a fork with more to write
    _, status = os.waitpid(child, 0)
    if not data.endswith(b"\n"):
        return _reply(request, crashed=os.waitstatus_to_exitcode(status))
    return bytes(data)


def _limit(limits: Limits) -> None:
    """Limit this process for good. Its output is dropped: the log may be longer than the limit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)
    seconds = math.ceil(limits.seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file, limits.file))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _reply(request: Mapping[str, Any], **content: Any) -> bytes:
    return json.dumps({"number": request["number"], **content}).encode() + b"\n"


def _write(descriptor: int, data: bytes) -> None:
    with os.fdopen(os.dup(descriptor), "wb") as pipe:
        pipe.write(data)


def progressed() -> None:
    """Called by an operation: it has completed a step of its work."""
    if _STEPS:
        os.write(_STEPS[0], b"\n")


def serve() -> NoReturn:
    """Main loop of the child (`CHILD` module descriptor rulesets path…): answers requests until
    EOF."""
    module_name, replies = sys.argv[1], int(sys.argv[2])
    die_with_parent()
    if sys.argv[3]:
        try:
            landlock.restrict(map(int, sys.argv[3].split(",")))
        except OSError as error:
            print(f"cannot be confined: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(UNCONFINED)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    module = importlib.import_module(module_name)
    _STEPS.append(replies)
    answer = _answer_in_fork if getattr(module, "FORK", False) else _answer
    for line in sys.stdin.buffer:
        _write(replies, answer(module, json.loads(line)))
    sys.exit(0)
