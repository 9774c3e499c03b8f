"""SIGTERM and SIGINT, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

Start = Callable[..., "subprocess.Popen[str]"]
BEGIN = """
import os, signal, sys, threading, time
from dpstream.shared.runtime.signals import asked_to_stop
with asked_to_stop() as stopping:
    print("ready", flush=True)
    {body}
"""
COMMAND = """
import os, signal
from rich.console import Console
from dpstream.terminal.interrupt import signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
try:
    with signals(Console()) as asked:
        print("ready", flush=True)
        while not asked.wait(1e-6): pass
        print("asked", flush=True)
        while True: pass
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGINT)
    print("interrupted", flush=True)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def started(body: str, code: str = BEGIN) -> subprocess.Popen[str]:
        code = code.format(body=body)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert said(process) == "ready"
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_the_first_asks_and_the_second_ends(start: Start, kind: signal.Signals) -> None:
    process = start("stopping.wait(); print('asked', flush=True); time.sleep(60)")
    process.send_signal(kind)
    assert said(process) == "asked"
    process.send_signal(kind)
    assert process.wait(10) == 128 + kind


@pytest.mark.slow
def test_a_thread_that_waits_for_the_event_is_never_locked_out(start: Start) -> None:
    # The main thread takes and leaves the event's own lock all the time.
    process = start("while not stopping.wait(1e-6): pass")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.slow
def test_other_signals_ask_nothing(start: Start) -> None:
    body = (
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard', flush=True)); "
        "os.kill(os.getpid(), signal.SIGUSR1); print(stopping.wait(0.2), flush=True)"
    )
    process = start(body)
    assert [said(process), said(process)] == ["heard", "False"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_the_command_is_interrupted_by_the_second_and_ignores_a_third(
    start: Start, kind: signal.Signals
) -> None:
    process = start("", COMMAND)
    process.send_signal(signal.SIGHUP)  # ignored when the command began
    process.send_signal(kind)
    assert said(process) == "asked"
    process.send_signal(kind)
    assert said(process) == "interrupted"
    assert process.wait(10) == 0
