"""Runs the explorer engine and its tasks in this process, on a store, a bus and small frames."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk, molecule

from dpstream.services.explorer.batched.replica import has_barostats
from dpstream.services.explorer.lammps import script as md_script
from dpstream.shared.atoms.frames import Batch, Frame, canonical, frame_key, from_ase
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import decode
from dpstream.shared.messages import ChunkExplored, Explore
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Md, Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import (
    Committee,
    Condition,
    FrameRef,
    PoolItem,
    Ref,
    Trust,
    campaign_uri,
)

CH4 = canonical(from_ase(molecule("CH4"))).frame
AL4 = canonical(from_ase(bulk("Al", cubic=True))).frame
AL8 = canonical(from_ase(bulk("Al", cubic=True) * (2, 1, 1))).frame
ALLOY = bulk("Cu", cubic=True, a=3.85) * (2, 1, 1)
ALLOY.symbols[[0, 1, 4, 5]] = "Au"
AU4CU4 = canonical(from_ase(ALLOY)).frame
OPEN = Trust(low=0.1, high=1e9)
"""Levels that stop nothing."""
COLD = Condition(system="s", temperature=300)
BAROSTATS = find_spec("torch_sim") is not None and has_barostats()
"""Whether engine `batched` has npt here."""


@dataclass(frozen=True)
class Trajectory:
    outcome: dict[str, Any]
    arrays: Mapping[str, Any]

    def batch(self, frame: Frame) -> Batch:
        cells = None if frame.cell is None else self.arrays["cells"]
        return Batch(frame.species, self.arrays["positions"], cells)


def run(
    engine: ChildProcess,
    folder: Path,
    frame: Frame,
    models: Sequence[Path],
    condition: Condition = COLD,
    trust: Trust = OPEN,
    checks: int = 10,
    velocity: Sequence[str] = (),
    **md: Any,
) -> Trajectory:
    """A trajectory straight through the engine, driver 1. `velocity`: commands that set other
    initial velocities."""
    folder.mkdir(exist_ok=True)
    settings = Md.model_validate({"timestep": 0.0005, "every": 5, **md})
    type_map = sorted(set(frame.species))
    data = folder / "data"
    data.write_text(md_script.data_file(frame, type_map, {}))
    pair = md_script.pair_commands(models, 1, type_map, settings.every, trust, frame)
    script = md_script.start_script(frame, data, settings, condition, 5, pair)
    script.velocity.extend(velocity)
    engine.call("begin", {"script": vars(script)})
    arguments = {
        "checks": checks,
        "every": settings.every,
        "overlap": settings.overlap,
        "reach": 4.0 if frame.cell is None else None,
        "trust": trust.model_dump(),
        "streak": 0,
        "stop_after": settings.stop_after,
        "frames": str(folder / "frames.npz"),
    }
    outcome = engine.call("advance", arguments)
    with np.load(folder / "frames.npz", allow_pickle=False) as found:
        return Trajectory(outcome, dict(found))


def evaluated(
    engine: ChildProcess, folder: Path, models: Sequence[Path], batch: Batch
) -> Mapping[str, Any]:
    (folder / "batch.npz").write_bytes(batch.dumps())
    files = {"batch": str(folder / "batch.npz"), "result": str(folder / "result.npz")}
    engine.call("evaluate", {"models": [str(m) for m in models], **files})
    with np.load(folder / "result.npz", allow_pickle=False) as found:
        return dict(found)


@dataclass
class ExplorerHarness:
    """A store, a bus, and commands of one campaign with their contexts."""

    root: Path
    frame: Frame
    models: Sequence[Path]
    md: Mapping[str, Any] = field(default_factory=dict)
    spec_extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store, self.bus = FolderStore(self.root / "store"), InProcessBus()
        self.numbers = itertools.count(1)
        self.type_map = tuple(sorted(set(self.frame.species)))
        spec = Spec.model_validate(
            {
                "name": "c",
                "type_map": self.type_map,
                "systems": {"s": {"structures": ["unused.xyz"]}},
                "initial": {"perturb": {}},
                "stages": [{"name": "one", "systems": ["s"], "temperatures": [300]}],
                "md": {"timestep": 0.0005, "every": 5, "steps": 100, "chunk": 5, **self.md},
                **self.spec_extra,
            }
        )
        self.spec = self.put("spec.json", spec.model_dump_json().encode())
        self.structure = self.frame_refs("start.npz", Batch.of([self.frame]))[0]
        self.committee = self.add_committee(1, self.models)

    def put(self, name: str, data: bytes) -> Ref:
        uri = campaign_uri("c", name)
        self.store.put(uri, data)
        return Ref.to(uri, data)

    def frame_refs(self, name: str, batch: Batch) -> list[FrameRef]:
        ref = self.put(name, batch.dumps())
        keys = [frame_key(frame) for frame in batch]
        return [FrameRef(batch=ref, index=i, key=key) for i, key in enumerate(keys)]

    def add_committee(self, version: int, models: Sequence[Path]) -> Ref:
        refs = [self.put(f"models/{m.parent.name}{m.suffix}", m.read_bytes()) for m in models]
        committee = Committee(version=version, models=tuple(refs), type_map=self.type_map)
        return self.put(f"committees/{version}.json", committee.model_dump_json().encode())

    def fields(self, **more: Any) -> dict[str, Any]:
        common = {"id": "i", "campaign": "c", "time": 0.0, "task": "t", "title": "x"}
        number = next(self.numbers)
        return {**common, "attempt": number, "max_seconds": 120, "spec": self.spec, **more}

    def explore(self, **more: Any) -> Explore:
        fields = self.fields(
            committee=self.committee,
            version=1,
            stage=0,
            trajectory="one-0",
            condition=COLD,
            structure=self.structure,
            seed=5,
            driver=1,
            trust=OPEN,
            pinned=True,
        )
        return Explore(**{**fields, **more})

    def context(self, command: Any) -> Context:
        scratch = self.root / "scratch" / str(command.attempt)
        scratch.mkdir(parents=True)
        return Context(self.store, self.bus, command, scratch, "w", threading.Event())

    def published(self) -> list[ChunkExplored]:
        """Events published since the last call."""
        subscription = self.bus.consume("coordinator", prefetch=100)
        events = []
        while (delivery := subscription.next(timeout=0.01)) is not None:
            events.append(decode(delivery.body))
            delivery.ack()
        subscription.cancel()
        return events

    def batch(self, item: PoolItem | None) -> Batch:
        assert item is not None
        batch = Batch.loads(self.store.get(item.frames.uri))
        assert len(batch) == item.count
        return batch


def total(event: ChunkExplored) -> int:
    return event.counts.total + event.dropped
