"""Campaigns that release 0.1.0 wrote, and what its own commands reported about them."""

from __future__ import annotations

import hashlib
import html
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.overview import overview
from dpstream.shared.messages import AuditDone
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.archived import frames_of

DATA = Path(__file__).parents[2] / "data" / "release-0.1.0"
NAMES = ("streaming-proposals", "dpgen-lockstep", "killed")
RENAMED_TAGS = {"candidates-found/1": "chunk-explored/1"}
WORKER = re.compile(r"\b(?:trainer|explorer|labeler|judge)-[\w.-]+")
REPORT_PART = re.compile(r'<tr>.*?</tr>|<div class="tile">.*?</div>|<svg.*?</svg>', re.DOTALL)


@dataclass(frozen=True)
class OldCampaign:
    """An unpacked campaign."""

    name: str
    folder: Path
    """Holds the spec files; the campaign lies in `root`."""
    expected: dict[str, Any]
    """The facts by release 0.1.0."""

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.root)


def unpack(name: str, folder: Path) -> OldCampaign:
    with tarfile.open(DATA / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    expected = json.loads((DATA / f"{name}.expected.json").read_text())
    return OldCampaign(name, folder / name, expected)


def state_facts(state: State) -> dict[str, Any]:
    """What `expected.json` holds under `state`."""
    labels, exploration, proposals = state.labels, state.exploration, state.proposals
    frames = frames_of(state)
    return {
        "verdict": None if state.finished is None else [state.finished.verdict, state.finished.why],
        "version": state.committee.version,
        "cold_version": state.committee.cold_version,
        "dataset_version": state.dataset.version,
        "trained": state.dataset.size,
        "fresh": len(state.dataset.fresh),
        "reused": labels.reused,
        "pending": labels.pending,
        "revoked": labels.revoked,
        "audited": len(labels.audited),
        "label_room": state.label_room,
        "ended": [[end.stage, end.verdict, end.why] for end in exploration.ended],
        "stage": [exploration.stage.index, exploration.stage.rounds, exploration.stage.answered],
        "rounds": exploration.rounds,
        "pool": len(state.candidates.pool),
        "selected": state.candidates.selected,
        "frames": dict(Counter(f"{frame.status}/{frame.purpose}" for frame in frames.values())),
        "lives": {
            key: f"{frame.status} {frame.purpose} {frame.stage} {frame.version} {frame.origin}"
            for key, frame in frames.items()
        },
        "tasks": overview(state).tasks,
        "errors": [error.model_dump(mode="json") for error in overview(state).errors],
        "proposals": {
            "open offers": len(proposals.offers),
            "judged": len(proposals.judged),
            "waiting": len(proposals.waiting),
            "labels": proposals.labels,
            "intake": {name: intake.frames for name, intake in proposals.intake.items()},
        },
        "stable": None if state.final.verified is None else state.final.verified.stable,
    }


def audit_facts(audit: AuditDone) -> list[Any]:
    upper = None if np.isinf(audit.force_upper) else audit.force_upper
    return [audit.version, audit.frames, audit.trajectories, audit.force, upper]


def figures(text: str) -> str:
    """Every word with a digit, but no names of workers: what stays when a text is reworded."""
    words = WORKER.sub("", text).split()
    return " ".join(word.strip(".,:;()") for word in words if re.search(r"\d", word))


def report_figures(page: str) -> list[str]:
    """Those of each tile, table row and chart of a report, up to the plan."""
    results, heading, _ = page.partition("<h2>Plan")
    assert heading
    found = (figures(visible(part)) for part in REPORT_PART.findall(results))
    return [part for part in found if part]


def visible(part: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", part))


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def dataset_facts(folder: Path) -> dict[str, Any]:
    """Frames and checksum of every DeePMD system below a folder."""
    systems = sorted(path.parent for path in folder.rglob("type.raw"))
    return {str(system.relative_to(folder)): _system_facts(system) for system in systems}


def _system_facts(system: Path) -> dict[str, Any]:
    """The checksum of numbers rounded to 6 decimals does not depend on the order of frames."""
    kinds = (system / "type_map.raw").read_text().split()
    species = " ".join(kinds[int(kind)] for kind in (system / "type.raw").read_text().split())
    sums = []
    for part in system.glob("set.*"):
        arrays = {path.stem: np.load(path) for path in sorted(part.glob("*.npy"))}
        for frame in zip(*arrays.values(), strict=True):
            lines = [species, *map(_line, arrays, frame)]
            sums.append(hashlib.sha256("\n".join(lines).encode()).hexdigest())
    whole = hashlib.sha256("\n".join(sorted(sums)).encode()).hexdigest()
    return {"frames": len(sums), "sha256": whole}


def _line(name: str, values: Any) -> str:
    rounded = np.round(np.ravel(values).astype(float), 6) + 0.0  # no minus before a zero
    return f"{name}:" + " ".join(f"{value:.6f}" for value in rounded)
