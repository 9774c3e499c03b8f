"""A store, a bus and a warm trainer engine, with small datasets, for tests of trainings."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import molecule
from ase.calculators.emt import EMT

from dpstream.services.trainer.handlers import HANDLERS
from dpstream.services.trainer.resources import TrainerResources
from dpstream.shared.atoms.frames import Batch, Frame, FrameLabel, canonical, encode_labelled
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import decode
from dpstream.shared.messages import CheckpointSaved, MemberTrained, Train
from dpstream.shared.runtime.child_process import ChildProcess
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Dataset, Ref

FRAMES = 24
LIBRARIES = {"tensorflow": "libtensorflow", "pytorch": "libtorch", "jax": "jaxlib"}
"""Parts of the paths of the backends' shared libraries."""


def labels(count: int, seed: int) -> list[tuple[Frame, FrameLabel]]:
    """Methane, randomly displaced by 0.1 Å at most, labelled with GFN2-xTB, or where tblite is not
    installed with EMT, which computes it badly, but as smoothly."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        atoms = molecule("CH4")
        atoms.positions += rng.uniform(-0.1, 0.1, (5, 3))
        frame = canonical(Frame(tuple(atoms.get_chemical_symbols()), atoms.positions)).frame
        atoms.symbols, atoms.positions = "".join(frame.species), frame.positions
        atoms.calc = _calculator()
        label = FrameLabel(float(atoms.get_potential_energy()), atoms.get_forces())
        result.append((frame, label))
    return result


def backends_loaded_by(engine: ChildProcess) -> set[str]:
    """The backends whose shared libraries a child process has loaded."""
    loaded = mapped_by(engine)
    return {name for name, library in LIBRARIES.items() if library in loaded}


def mapped_by(engine: ChildProcess) -> str:
    """The files that a child process has mapped, with their addresses."""
    return Path(f"/proc/{engine.pid}/maps").read_text()


def _calculator() -> Any:
    if find_spec("tblite") is None:
        return EMT()
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


class TrainerHarness:
    """A store with a dataset and a test set, a bus, and the trainer's resources."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = FolderStore(root / "store")
        self.bus = InProcessBus()
        self.bus.bind("published", "#")
        self.published = self.bus.consume("published", prefetch=1000)
        self.resources = TrainerResources(root / "bench")
        first = self.manifest(1, packs=[self.pack(labels(FRAMES - 4, 1))])
        loose = [self.label(*pair) for pair in labels(4, 2)]
        self.dataset = self.manifest(2, parent=first, labels=loose)
        self.test = self.manifest(3, packs=[self.pack(labels(6, 3))])
        self.serial = 0

    def put(self, key: str, data: bytes) -> Ref:
        self.store.put(key, data)
        return Ref.to(key, data)

    def manifest(self, version: int, **fields: Any) -> Ref:
        body = Dataset.model_validate({"version": version, **fields}).model_dump_json()
        return self.put(f"campaigns/t/dataset/{version}.json", body.encode())

    def pack(self, pairs: list[tuple[Frame, FrameLabel]]) -> Ref:
        energy = np.array([label.energy for _, label in pairs])
        forces = np.stack([label.forces for _, label in pairs])
        data = Batch.of([frame for frame, _ in pairs], energy=energy, forces=forces).dumps()
        return self.put(f"campaigns/t/packs/{Ref.to('x', data).sha256}.npz", data)

    def label(self, frame: Frame, label: FrameLabel) -> Ref:
        data = encode_labelled(frame, label, {})
        return self.put(f"labels/x/{Ref.to('x', data).sha256}.json", data)

    def command(self, spec: dict[str, Any], **fields: Any) -> Train:
        self.serial += 1
        body = spec_of(**spec).model_dump_json().encode()
        ref = self.put(f"campaigns/t/specs/{self.serial}.json", body)
        settings: dict[str, Any] = {
            "id": f"c{self.serial}",
            "campaign": "t",
            "time": 0.0,
            "task": f"train-{self.serial}",
            "title": "a training",
            "max_seconds": 120.0,
            "spec": ref,
            "version": 1,
            "member": 0,
            "seed": 11,
            "dataset": self.dataset,
            "steps": 60,
        }
        return Train(**{**settings, **fields})

    def context(self, command: Train) -> Context:
        scratch = self.root / "scratch" / command.task
        scratch.mkdir(parents=True)
        return Context(self.store, self.bus, command, scratch, "w", threading.Event())

    def train(self, spec: dict[str, Any] | None = None, **fields: Any) -> MemberTrained:
        command = self.command(spec or {}, **fields)
        result = HANDLERS[Train](self.resources, command, self.context(command))
        assert decode(result.model_dump_json().encode()) == result
        return result

    def saved(self) -> list[CheckpointSaved]:
        """Checkpoints announced since the last call."""
        events = []
        while (delivery := self.published.next(timeout=0.05)) is not None:
            event = decode(delivery.body)
            delivery.ack()
            events += [event] if isinstance(event, CheckpointSaved) else []
        return events

    def file(self, ref: Ref) -> Path:
        path = self.root / "files" / ref.uri.replace("/", "-")
        path.parent.mkdir(exist_ok=True)
        self.store.download(ref.uri, path)
        return path


def spec_of(
    mode: str = "lockstep",
    type_map: Sequence[str] = ("H", "C"),
    system: Mapping[str, Any] | None = None,
    dimers: Mapping[str, Any] | None = None,
    **training: Any,
) -> Spec:
    """`system`: further keys of the one system; `dimers`: of `initial`. Embedding nets per element
    instead of per pair are built faster."""
    model = training.get("input", {}).get("model", {})
    if "type" not in model.get("descriptor", {}):
        model = {**model, "descriptor": {"type_one_side": True, **model.get("descriptor", {})}}
        training["input"] = {**training.get("input", {}), "model": model}
    document = {
        "name": "t",
        "mode": mode,
        "type_map": type_map,
        "systems": {"methane": {"structures": ["CH4.xyz"], **(system or {})}},
        "initial": {"perturb": {"copies": 4}, "dimers": dimers},
        "stages": [{"name": "s", "systems": ["methane"], "temperatures": [300]}],
        "training": training,
    }
    return Spec.model_validate(document)
