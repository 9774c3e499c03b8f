"""`--quiet` and `--verbose`, which `dpstream` and every command of it accept."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import structlog
import typer

from dpstream.terminal.console import notes


class Verbosity:
    """Whether log lines are printed."""

    logs = False


def _be_quiet(context: typer.Context, wanted: bool) -> None:
    notes.quiet = wanted or (notes.quiet and context.parent is not None)


def _show_logs(context: typer.Context, wanted: bool) -> None:
    Verbosity.logs = wanted or (Verbosity.logs and context.parent is not None)
    if wanted:
        _print_logs()


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_be_quiet,
        expose_value=False,
        help="Print results and errors only: no plan, no progress, no next step.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_show_logs,
        expose_value=False,
        help="Print the log lines of this process to standard error.",
    ),
]


def in_all_commands(command: Any, options: Sequence[Any]) -> Any:
    """A command, or a group, with those of the `options` that are of these types as options of
    every command in it, too."""
    shared = [option for option in options if option.name in ("quiet", "verbose")]
    for each in _leaves(command):
        each.params += shared
    return command


def _leaves(command: Any) -> Iterator[Any]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield command
        return
    for each in inner.values():
        yield from _leaves(each)


def print_log_line(line: str) -> None:
    """Above a live screen, which takes over standard error."""
    print(line, file=sys.stderr)


def _print_logs() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
            _print,
        ],
    )


def _print(_logger: Any, _method: str, line: Any) -> str:
    print_log_line(line)
    raise structlog.DropEvent
