"""`dpstream propose --watch`: proposes structures that a structure search writes to a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dpstream.generators.client import PART, Generator, Verdict
from dpstream.inputs.read_structures import read_structures
from dpstream.inputs.reading.ase_files import one_line
from dpstream.inputs.reading.patterns import folders, is_hidden
from dpstream.shared.atoms.frames import Frame, as_frame, canonical, frame_key
from dpstream.shared.errors import SpecError
from dpstream.shared.values import stable_id

PATTERNS = (
    "POSCAR*",
    "CONTCAR*",
    "*_ori",
    "gatheredPOSCARS",
    "*.vasp",
    "*.cif",
    "*.xyz",
    "*.extxyz",
)
"""Structure files of CALYPSO, USPEX and similar programs."""
LOOK = 2.0
"""Seconds between two scans of the folder."""


class WatchedFolder:
    """Proposes each structure that appears in a folder once. Keys of proposed frames are stored in
    a file of the folder; a file is read when it has stopped changing."""

    def __init__(
        self, folder: Path, generator: Generator, say: Callable[[Verdict | str], None], **how: Any
    ) -> None:
        self.folder, self.generator, self.say, self.how = folder, generator, say, how
        self.memory = folder / f".dpstream-{generator.campaign}-{generator.name}"
        if not folder.is_dir():
            raise SpecError(f"--watch: {folder}: no such folder")
        self._seen: dict[Path, tuple[float, int]] = {}
        self._read: dict[Path, tuple[float, int]] = {}
        self._known = set(self.memory.read_text().split()) if self.memory.exists() else set[str]()

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Scan, propose and print verdicts until `stop` returns true."""
        while not stop():
            self.look()
            for verdict in self.generator.verdicts(timeout=LOOK):
                self.say(verdict)

    def look(self) -> int:
        """Propose new frames. Returns their number."""
        new: dict[str, Frame] = {}
        for path in self._settled():
            new |= {key: frame for key, frame in self._frames(path) if key not in self._known}
        keys = sorted(new)
        for start in range(0, len(keys), PART):
            self._propose(keys[start : start + PART], new)
        return len(keys)

    def _propose(self, keys: Sequence[str], new: dict[str, Frame]) -> None:
        """The correlation follows from the frames, so a repeated proposal after a crash is
        recognised as a duplicate."""
        correlation = stable_id(self.generator.name, *keys)
        frames = [new[key] for key in keys]
        self.generator.propose(frames, correlation=correlation, **self.how)
        with self.memory.open("a") as memory:
            memory.write("".join(f"{key}\n" for key in keys))
        self._known |= set(keys)
        self.say(f"{time.strftime('%H:%M:%S')} proposed {len(keys)} frames as {correlation}")

    def _settled(self) -> Iterator[Path]:
        """Files that are new or changed, and unchanged since the last scan."""
        places = list(folders(self.folder))
        paths = {path for place in places for pattern in PATTERNS for path in place.glob(pattern)}
        for path in sorted(path for path in paths if path.is_file() and not is_hidden(path)):
            status = path.stat()
            now = status.st_mtime, status.st_size
            if self._read.get(path) != now and self._seen.get(path) == now:
                self._read[path] = now
                yield path
            self._seen[path] = now

    def _frames(self, path: Path) -> Iterable[tuple[str, Frame]]:
        try:
            given = [as_frame(atoms, str(path)) for atoms in read_structures(path)]
            frames = [canonical(frame).frame for frame in given]
        except (SpecError, ValueError, OSError) as error:
            self.say(f"skipped: {one_line(error)}")
            return []
        return [(frame_key(frame), frame) for frame in frames]
