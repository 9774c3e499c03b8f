"""Runs one program so that nothing of it outlives it or the worker.

`supervised` is the command; `main` runs in a process of its own between the worker and the program.
Processes that the program leaves behind, also in sessions of their own, become children of the
supervisor, which ends them with the program, when the worker signals it (`end`), and when the
worker dies. The program is confined, its supervisor is not, so that the program cannot end it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from dpstream.shared.runtime.confinement import landlock

END = signal.SIGHUP
"""Not SIGTERM, which a batch system sends to all processes of a job: the worker decides."""
AWAITED = (signal.SIGCHLD, END, signal.SIGTERM, signal.SIGINT)
END_SECONDS = 5.0
"""Limit for processes that the kernel cannot end at once, such as those waiting for a disk."""
NOT_STARTED = 127
PARENT_DEATH_SIGNAL, CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)
SUPERVISOR = (
    sys.executable,
    "-I",
    "-S",
    "-c",
    f"import sys; sys.path += sys.argv[1].split({os.pathsep!r}); "
    "from dpstream.shared.runtime.confinement.supervisor import main; main()",
)


def supervised(command: Sequence[str], rulesets: Sequence[int], faults: int) -> list[str]:
    """The command that runs `command` and restricts it to these rulesets (`landlock`). Its status
    is the program's. It must inherit the descriptors of the rulesets and that of `faults`, a pipe
    to which it writes why the program could not start, else nothing."""
    package = os.path.dirname(sys.modules["dpstream"].__file__ or "")
    path = os.pathsep.join([os.path.dirname(package), *map(os.path.abspath, sys.path)])
    own = (path, str(os.getpid()), ",".join(map(str, rulesets)), str(faults))
    return [*SUPERVISOR, *own, *command]


def end(supervisor: subprocess.Popen[bytes]) -> None:
    """End the program, all that it started, and its supervisor."""
    supervisor.send_signal(END)
    with suppress(subprocess.TimeoutExpired):
        supervisor.wait(2 * END_SECONDS)
        return
    os.killpg(supervisor.pid, signal.SIGKILL)
    supervisor.wait()


def main() -> NoReturn:
    """`SUPERVISOR path parent rulesets faults command…`."""
    parent, rulesets, faults, command = (
        int(sys.argv[2]),
        sys.argv[3],
        int(sys.argv[4]),
        sys.argv[5:],
    )
    descriptors = [int(each) for each in rulesets.split(",") if each]
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    _control(CHILD_SUBREAPER, 1)
    _control(PARENT_DEATH_SIGNAL, END)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(NOT_STARTED)
    program = os.fork()
    if program == 0:
        _become(command, descriptors, faults)
    for descriptor in (*descriptors, faults):
        os.close(descriptor)
    status = _wait(program)
    _end_descendants()
    _end_as(status)


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        _LIBC.prctl(option, value, 0, 0, 0)


def _become(command: Sequence[str], rulesets: Sequence[int], faults: int) -> NoReturn:
    """In the child: run the program, which does not inherit `faults`."""
    failed = "cannot be confined"
    try:
        _control(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        os.set_inheritable(faults, False)
        if rulesets:
            landlock.restrict(rulesets)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        failed = "cannot be executed"
        os.execvp(command[0], list(command))
    except OSError as error:
        os.write(faults, f"{failed}: {error.strerror}".encode())
    finally:
        os._exit(NOT_STARTED)


def _wait(program: int) -> int:
    """Wait until the program ends by itself, or the worker ends it; its wait status."""
    while True:
        if signal.sigwait(AWAITED) == END:
            return signal.SIGKILL
        for pid, status in _reaped():
            if pid == program:
                return status


def _reaped() -> list[tuple[int, int]]:
    """Children that ended, with their wait statuses."""
    found = []
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(ended)
    return found


def _end_descendants() -> None:
    """End children until there are none: those of an ended process become this one's."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        _reaped()
        children = _children()
        if not children:
            return
        for child in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _children() -> list[int]:
    """Children that run. The look at all processes is spared where none is left."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{process}/stat") as stat:
            _, _, fields = stat.read().rpartition(")")  # a program's name may hold anything
            if int(fields.split()[1]) == os.getpid():
                found.append(int(process))
    return found


def _end_as(status: int) -> NoReturn:
    """End with the program's status: exit status or signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no other handler
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))
