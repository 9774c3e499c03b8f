"""A parser of the standard library alone, whose files say what it does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from dpstream.shared.atoms.records import Record
from dpstream.shared.runtime.parser import write_records

FORK = True


def read(source: str, result: str) -> None:
    word, _, argument = Path(source).read_text().partition(" ")
    match word:
        case "loop":
            while True:
                pass
        case "wait":
            time.sleep(600)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "once":  # killed unless it finds the trace of an earlier try
            if not Path(argument).exists():
                Path(argument).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            write_records(result, [Record({"word": word, "pid": os.getppid()})])
        case "leave":
            os._exit(0)
        case "memory":
            bytearray(int(argument))
        case "flood":
            Path(result).write_bytes(b"x" * int(argument))
        case "print":
            print("x" * int(argument))
            write_records(result, [])
        case "garbage":
            Path(result).write_text(argument)
        case "link":
            os.symlink(argument, result)
        case "nothing":
            pass
        case "blame":
            raise RuntimeError("CUDA error: out of memory")
        case _:
            write_records(result, [Record({"word": word, "pid": os.getppid()})])


def read_outputs(**arguments: Any) -> None:
    """As the operation of a labeler's parser; killed every time."""
    os.kill(os.getpid(), signal.SIGKILL)


OPERATIONS = {"read": read, "read_outputs": read_outputs}
