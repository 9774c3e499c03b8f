"""The entry point of the `dpstream` command, which turns every exception into one line.

Exit status: 1 for a question that was not answered with yes, 2 for bad input and for what the
machine refuses (permissions, a full disk), 3 for an internal error, whose traceback is written to a
file, 130 for an interruption. The commands are in `dpstream.commands.app`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import Any, TextIO

from dpstream.shared.errors import DpstreamError, is_machines_fault

NOT_CONFIRMED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 1, 2, 3, 130


def main() -> None:
    """Run the command line in `sys.argv`, and exit."""
    sys.stdout = sys.stdout or _devnull()  # None if the shell has closed it (>&-)
    sys.stderr = sys.stderr or _devnull()
    try:
        from dpstream.commands.app import command

        status = command(prog_name="dpstream", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        # The reader of the output has gone; redirect it, or Python would fail to flush it at exit.
        os.dup2(_devnull().fileno(), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        _print_error("interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        text, status = _described(error)
        if text:
            _print_error(text)
        sys.exit(status)


def _devnull() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _print_error(text: str) -> None:
    print(f"dpstream: {' '.join(text.split())}", file=sys.stderr)


def _described(error: Exception) -> tuple[str, int]:
    """The error as one line, and the exit status."""
    if isinstance(error, DpstreamError):
        return str(error), BAD_INPUT
    if type(error).__name__ == "Abort":  # of the command line parser: a question without a yes
        return "not confirmed; nothing was changed", NOT_CONFIRMED
    if hasattr(error, "format_message"):
        return _usage(error), BAD_INPUT
    if isinstance(error, PermissionError) or is_machines_fault(error):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", BAD_INPUT
    return _internal_error(error), INTERNAL_ERROR


def _usage(error: Any) -> str:
    """The message of the command line parser, and where the help is. Empty if it printed help."""
    message = str(error.format_message())
    if not message:
        return ""
    context = getattr(error, "ctx", None)
    help_command = f"{context.command_path if context else 'dpstream'} --help"
    if message.endswith("?"):
        return f"{message} See {help_command}"
    return f"{message.rstrip('.')}; see {help_command}"


def _internal_error(error: Exception) -> str:
    """Write the traceback to a file, and name the file."""
    descriptor, path = tempfile.mkstemp(prefix="dpstream-fault-", suffix=".txt", text=True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    return f"internal error: {type(error).__name__}: {error}; traceback: {path}"
