"""Runs `dpstream run` on an empty store and reads its outcome from the ledger."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.vs_dpgen.outcome import Outcome
from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.shared.messages import LabelsDone, Message, ModelsReady, Result, TaskClaimed
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore

WORKERS = {"trainer": 2, "explorer": 2, "labeler": 2}
ENDED = (0, 1)
"""Exit statuses of a campaign that ended, converged or not."""


def run(spec: Spec, inputs: Path, root: Path) -> Outcome:
    """Runs from an empty store to the end of the campaign. Raises RuntimeError if it fails."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    path = inputs / f"{spec.name}.json"
    path.write_text(spec.model_dump_json(indent=1, exclude_unset=True))
    started = time.time()
    with (root / "output").open("w") as output:
        done = subprocess.run(_command(path, root), stdout=output, stderr=output)
    ended = time.time()
    if done.returncode not in ENDED:
        raise RuntimeError(f"dpstream ended with status {done.returncode}; see {root / 'output'}")
    messages = list(read_messages(FolderStore(root), spec.name))
    ready = committee(messages)
    return Outcome(
        arm=spec.mode,
        started=started,
        ready=ready.time,
        ended=ended,
        labels=labels(messages),
        models=tuple(str(root / model.uri) for model in ready.committee.models),
        busy=busy(messages),
        processes={"engine": sum(WORKERS.values())},
        polling=0.0,
    )


def _command(spec: Path, root: Path) -> list[str]:
    workers = ",".join(f"{service}={count}" for service, count in WORKERS.items())
    program = str(Path(sys.executable).with_name("dpstream"))
    return [program, "run", str(spec), "--root", str(root), "--workers", workers]


def committee(messages: Sequence[Message]) -> ModelsReady:
    """The committee trained on all labels. Raises RuntimeError if labels arrived after the last
    one."""
    last = [n for n, message in enumerate(messages) if isinstance(message, ModelsReady)]
    if not last or any(isinstance(message, LabelsDone) for message in messages[last[-1] :]):
        raise RuntimeError("no committee was trained on all labels")
    ready = messages[last[-1]]
    assert isinstance(ready, ModelsReady)
    return ready


def labels(messages: Sequence[Message]) -> int:
    """Number of accepted labels; a frame accepted twice counts once."""
    done = [message for message in messages if isinstance(message, LabelsDone)]
    return len({accepted.key for event in done for accepted in event.accepted})


def busy(messages: Sequence[Message]) -> tuple[tuple[float, float], ...]:
    """Claim and last result of every task, s since the epoch."""
    claimed: dict[str, float] = {}
    ended: dict[str, float] = {}
    for message in messages:
        if isinstance(message, TaskClaimed):
            claimed[message.task] = min(message.time, claimed.get(message.task, message.time))
        elif isinstance(message, Result):
            ended[message.task] = max(message.time, ended.get(message.task, 0.0))
    return tuple(sorted((claimed[task], ended[task]) for task in claimed.keys() & ended.keys()))
