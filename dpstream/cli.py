"""The entry point of the `dpstream` command: whatever goes wrong is one line and an exit status.

Bad input, and what the machine refuses, is 2; a fault of ours is 3, with the traceback in a file;
an interruption 130. The commands are in `dpstream.commands.campaigns`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import Any, TextIO

from dpstream.shared.errors import DpstreamError, is_machines_fault

BAD_INPUT, OWN_FAULT, INTERRUPTED = 2, 3, 130


def main() -> None:
    """Run the command line in `sys.argv`, and exit."""
    sys.stdout = sys.stdout or _nowhere()  # None where the shell has closed it (>&-)
    sys.stderr = sys.stderr or _nowhere()
    try:
        from dpstream.commands.campaigns import command

        status = command(prog_name="dpstream", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing more can be said, at exit neither.
        os.dup2(_nowhere().fileno(), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        text, status = _explained(error)
        if text:
            _complain(text)
        sys.exit(status)


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _complain(text: str) -> None:
    print(f"dpstream: {' '.join(text.split())}", file=sys.stderr)


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one line, and the exit status."""
    if isinstance(error, DpstreamError):
        return str(error), BAD_INPUT
    if hasattr(error, "format_message"):
        return _usage(error), BAD_INPUT
    if isinstance(error, PermissionError) or is_machines_fault(error):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", BAD_INPUT
    return _fault(error), OWN_FAULT


def _usage(error: Any) -> str:
    """What the command line parser says, and where to read on. Empty after it has shown help."""
    message = str(error.format_message())
    if not message:
        return ""
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path if context else 'dpstream'} --help"


def _fault(error: Exception) -> str:
    """A fault of dpstream itself: its traceback goes to a file that is named."""
    descriptor, path = tempfile.mkstemp(prefix="dpstream-fault-", suffix=".txt", text=True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return f"a fault of dpstream itself: {type(error).__name__}: {error}; traceback: {path}"
