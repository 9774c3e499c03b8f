"""A child process of the standard library and the runtime alone, for the tests of
`dpstream.shared.runtime.child_process`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from dpstream.shared.runtime.child_process import progressed

CALLS: list[int] = []


def echo(value: Any) -> Any:
    return value


def refuse(text: str) -> None:
    raise LookupError(text)


def exhaust() -> None:
    raise RuntimeError("CUDA error: out of memory")


def count() -> int:
    """How often this process has been called."""
    CALLS.append(1)
    return len(CALLS)


def pid() -> int:
    return os.getpid()


def environment() -> dict[str, str]:
    return dict(os.environ)


def working_directory() -> str:
    return os.getcwd()


def die(number: int = signal.SIGKILL) -> None:
    print("last words")
    os.kill(os.getpid(), number)


def leave(status: int) -> None:
    sys.exit(status)


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "woken"


def loop() -> None:
    while True:
        pass


def work(count: int, seconds: float) -> str:
    for _ in range(count):
        time.sleep(seconds)
        progressed()
    return "worked"


def spawn() -> int:
    """The id of a process that does not end by itself."""
    return subprocess.Popen(["sleep", "1000"]).pid


def write_lines(text: str) -> None:
    print(text)
    print(text, file=sys.stderr)


def unserializable() -> object:
    return object()


def garble(text: str) -> str:
    """Write `text` to the reply pipe, as a faulty engine might."""
    os.write(int(sys.argv[2]), text.encode())
    return "after"


def flood(size: int) -> str:
    return "x" * size


OPERATIONS = {
    operation.__name__: operation
    for operation in (
        echo,
        refuse,
        exhaust,
        count,
        pid,
        environment,
        working_directory,
        die,
        leave,
        sleep,
        loop,
        work,
        spawn,
        write_lines,
        unserializable,
        garble,
        flood,
    )
}
