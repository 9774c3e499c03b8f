"""A small campaign written by hand: its ledger and the objects it refers to, in a folder store. One
initial frame, one frame chosen for training, one for the audit, one rejected, one not chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpstream.services.coordinator.apply.proposals import proposal_id, written_out
from dpstream.services.coordinator.ledger.ledger import Ledger, LedgerEntry
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import (
    Batch,
    Frame,
    FrameLabel,
    canonical,
    encode_labelled,
    frame_key,
)
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import (
    Accepted,
    CandidatePool,
    Chosen,
    Committee,
    Condition,
    Counts,
    Dataset,
    DeviceFacts,
    FrameRef,
    FrameVerdict,
    ImportedSet,
    OfferedFrame,
    PoolItem,
    Recipe,
    Ref,
    RefusedFrames,
    Rejected,
    Rmse,
    Screened,
    Trust,
    campaign_uri,
    label_uri,
    stable_id,
)

NAME = "told"
HOSTILE = "<script>alert('x')</script> & \"more\""
CPU = DeviceFacts(kind="cpu", backend="tensorflow 2.21.0", precision="float64")
RECIPE = Recipe(
    code="tblite", version="0.8.0", settings={"method": "GFN2-xTB"}, charge=0, multiplicity=1
)
TRUST = Trust(low=0.1, high=0.3)
TRAJECTORY = "cold/1/methane-50-K/0"
INITIAL, TRAINED, AUDITED, REJECTED, PASSED_OVER = range(5)

IMPORTED: tuple[ImportedSet, ...] = ()


def spec() -> Spec:
    return Spec.model_validate(
        {
            "name": NAME,
            "type_map": ["C", "H"],
            "systems": {"methane": {"structures": ["x"]}},
            "initial": {"perturb": {"copies": 1}},
            "training": {"members": 2},
            "stages": [{"name": "cold", "systems": ["methane"], "temperatures": [50.0]}],
        }
    )


def frame(number: int) -> Frame:
    """CH4 with its carbon displaced by `number` hundredths of an Å, canonical."""
    arms = np.array([[1.0, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) * 0.63
    positions = np.vstack([[0.01 * number, 0.0, 0.0], arms])
    return canonical(Frame(("C", "H", "H", "H", "H"), positions)).frame


FRAMES = [frame(number) for number in range(5)]
KEYS = [frame_key(f) for f in FRAMES]


class LedgerWriter:
    """Writes messages one second apart, and the objects they refer to."""

    def __init__(self, root: Path) -> None:
        self.store = FolderStore(root)
        self.spec = self.put(campaign_uri(NAME, "spec.json"), spec().model_dump_json().encode())
        self.messages: list[m.Message] = []
        deviations = np.array([0.05, 0.15, 0.02, 0.25, 0.12])
        batch = Batch.of(FRAMES, devi_f=deviations, time_ps=np.arange(5) * 0.1)
        self.batch = self.object("frames.npz", batch.dumps())
        self.item = PoolItem(
            frames=self.batch,
            count=5,
            trajectory=TRAJECTORY,
            condition=Condition(system="methane", temperature=50.0),
            version=1,
            planned_ps=1.0,
        )

    def put(self, uri: str, data: bytes) -> Ref:
        self.store.create(uri, data)
        return Ref.to(uri, data)

    def object(self, name: str, data: bytes) -> Ref:
        return self.put(campaign_uri(NAME, "results", name), data)

    def frame_ref(self, number: int) -> FrameRef:
        return FrameRef(batch=self.batch, index=number, key=KEYS[number])

    def label_of(self, number: int, reused: bool = False) -> Accepted:
        label = FrameLabel(-10.0 - number, np.full((5, 3), 0.1 * number))
        uri = label_uri(RECIPE.digest, KEYS[number])
        made_by = {"code": "tblite", "frame": KEYS[number], "recipe": RECIPE.digest}
        ref = self.put(uri, encode_labelled(FRAMES[number], label, made_by))
        return Accepted(key=KEYS[number], label=ref, reused=reused, max_force=0.2, seconds=0.01)

    def record(self, kind: type[m.Message], **fields: Any) -> Any:
        number = len(self.messages)
        envelope = {"id": stable_id(NAME, number), "campaign": NAME, "time": 1000.0 + number}
        if issubclass(kind, m.Command):
            envelope |= {"title": kind.__name__.lower(), "max_seconds": 60.0, "spec": self.spec}
        if issubclass(kind, m.TaskEvent):
            envelope |= {"attempt": 1}
        message = kind(**{**envelope, **fields})
        self.messages.append(message)
        return message

    def work(self, kind: type[m.Command], task: str, worker: str, **fields: Any) -> None:
        self.record(kind, task=task, **fields)
        self.record(m.TaskClaimed, task=task, worker=worker)

    def write(self) -> FolderStore:
        ledger, _ = Ledger.open(self.store, NAME)
        ledger.append([LedgerEntry(message) for message in self.messages])
        return self.store

    # --------------------------------------------------------------------------- the tale

    def beginning(self) -> None:
        """Submitted; the initial frame labelled."""
        self.record(
            m.CampaignSubmitted,
            imported=IMPORTED,
            spec=self.spec,
            frames=(self.frame_ref(INITIAL),),
            systems={"methane": (self.frame_ref(INITIAL),)},
            atoms={"methane": 5},
            recipe=RECIPE,
        )
        self.label("label-1", [INITIAL], accepted=(self.label_of(INITIAL, reused=True),))

    def label(self, task: str, numbers: Sequence[int], **outcome: Any) -> None:
        refs = tuple(self.frame_ref(n) for n in numbers)
        recipe = RECIPE.digest
        self.work(m.Label, task, "labeler-0", capability="tblite", recipe=recipe, frames=refs)
        self.record(m.LabelsDone, task=task, seconds=1.0, **outcome)

    def dataset(self, version: int, labels: Sequence[Ref], parent: Ref | None) -> Ref:
        body = Dataset(version=version, parent=parent, labels=tuple(labels)).model_dump_json()
        manifest = self.put(
            campaign_uri(NAME, "manifests", f"dataset-{version}.json"), body.encode()
        )
        self.record(m.ManifestFrozen, purpose="dataset", manifest=manifest, body=body)
        return manifest

    def member(self, task: str, dataset: Ref, version: int, number: int, final: bool) -> None:
        self.work(
            m.Train,
            task,
            f"trainer-{number}",
            version=version,
            member=number,
            seed=7,
            dataset=dataset,
            steps=100,
            final=final,
        )
        rmse = Rmse(frames=version, energy=0.001, force=0.03 + 0.01 * number, rms_force=1.0)
        self.record(
            m.MemberTrained,
            task=task,
            version=version,
            member=number,
            steps=100,
            model=self.object(f"{task}.pb", f"compressed {task}".encode()),
            frozen=self.object(f"{task}-frozen.pb", f"frozen {task}".encode()),
            compressed=True,
            checkpoint=self.object(f"{task}.zip", b"checkpoint"),
            lcurve=self.object(f"{task}.out", b"lcurve"),
            train=rmse,
            test=rmse,
            device=CPU,
        )

    def training(self) -> Ref:
        """Committee 1 on the initial label."""
        dataset = self.dataset(1, [self.label_of(INITIAL).label], None)
        for number in range(2):
            self.member(f"train-{number}", dataset, 1, number, final=False)
        self.record(
            m.TrainingJudged, version=1, verdict="sound", force=0.04, lengthen=1.0, why="it fits"
        )
        models = tuple(
            e.model for e in self.messages if isinstance(e, m.MemberTrained) and e.version == 1
        )
        committee = Committee(version=1, models=models, type_map=("C", "H"))
        self.record(m.ModelsReady, committee=committee, manifest=dataset, labels=1)
        self.record(m.TrustChanged, stage=0, version=1, trust=TRUST, why="set in the spec")
        return dataset

    def exploration(self) -> None:
        """One trajectory, whose frames are chosen, audited, refused; one label is rejected."""
        self.work(
            m.Explore,
            "explore-1",
            "explorer-0",
            committee=self.spec,
            version=1,
            stage=0,
            trajectory=TRAJECTORY,
            condition=self.item.condition,
            structure=self.frame_ref(INITIAL),
            seed=1,
            driver=0,
            trust=TRUST,
            pinned=False,
        )
        bins = [0] * 48
        bins[20], bins[26] = 2, 3
        chunk = {
            "task": "explore-1",
            "version": 1,
            "chunk": 0,
            "last": True,
            "counts": Counts(accurate=2, candidate=3),
            "dropped": 5,
            "stopped": "overlap",
            "candidates": self.item,
            "histogram": tuple(bins),
        }
        self.record(m.ChunkExplored, **chunk)
        self.record(m.ChunkExplored, **chunk)  # delivered twice
        self.selection()
        self.label(
            "label-2",
            [TRAINED, AUDITED, REJECTED],
            accepted=(self.label_of(TRAINED), self.label_of(AUDITED)),
            rejected=(Rejected(key=KEYS[REJECTED], rule="scf", detail=HOSTILE),),
        )

    def selection(self) -> None:
        body = CandidatePool(candidates=(self.item,)).model_dump_json()
        pool = self.put(campaign_uri(NAME, "manifests", "pool-1.json"), body.encode())
        self.record(m.ManifestFrozen, purpose="pool", manifest=pool, body=body)
        common = {"version": 1, "stage": 0}
        self.work(
            m.Select,
            "select-1",
            "explorer-0",
            committee=self.spec,
            seed=1,
            pool=pool,
            labels=2,
            audits=1,
            **common,
        )
        refused = RefusedFrames(
            frames={KEYS[PASSED_OVER]: "limit of its trajectory reached: 1 frames"}
        )
        common |= {"task": "select-1", "batches": (self.batch,)}
        first = (self.chosen(TRAINED),)
        self.record(m.CandidatesSelected, chunk=0, last=False, labels=first, **common)
        self.record(
            m.CandidatesSelected,
            chunk=1,
            labels=(self.chosen(REJECTED),),
            audits=(self.chosen(AUDITED, weight=12.0),),
            refused={"limit of its trajectory reached": 1},
            refusals=self.object("refused.json", refused.model_dump_json().encode()),
            **common,
        )

    @staticmethod
    def chosen(number: int, weight: float = 1.0) -> Chosen:
        return Chosen(
            batch=0,
            index=number,
            key=KEYS[number],
            trajectory=TRAJECTORY,
            version=1,
            time_ps=0.1 * number,
            deviation=0.15,
            weight=weight,
            reason=f"random draw number {number}",
        )

    def proposals(self) -> None:
        """A generator offers two frames: one is screened, the other is being screened."""
        offers = [self.offer(f"offer-{number}") for number in range(2)]
        for number, offer in enumerate(offers):
            proposal = proposal_id(offer)
            frames = self.object(f"offer-{number}.json", written_out(offer))
            common = {"committee": self.spec, "version": 1, "trust": TRUST}
            self.work(
                m.Screen,
                f"screen-{number}",
                "explorer-1",
                proposal=proposal,
                frames=frames,
                count=1,
                first=0,
                **common,
            )
        verdict = {"index": 0, "key": KEYS[PASSED_OVER], "verdict": "accurate", "deviation": 0.01}
        found = (Screened(**verdict),)
        self.record(m.StructuresScreened, task="screen-0", version=1, found=found)
        self.record(
            m.StructuresJudged,
            generator="ga",
            correlation="offer-0",
            proposal=proposal_id(offers[0]),
            version=1,
            verdicts=(FrameVerdict(**verdict),),
        )

    def offer(self, correlation: str) -> m.StructuresProposed:
        atoms = FRAMES[PASSED_OVER]
        frame = OfferedFrame(species=atoms.species, positions=atoms.positions.tolist())
        offer: m.StructuresProposed = self.record(
            m.StructuresProposed, generator="ga", correlation=correlation, frames=(frame,)
        )
        return offer

    def audit(self, **changes: Any) -> None:
        pair = {"origin": TRAJECTORY, "squared": 0.01, "weight": 1.0, "verdict": "accurate"}
        errors = [0.05, float("inf")]
        rows = [{"key": KEYS[AUDITED], "deviation": 0.02, "error": e, **pair} for e in errors]
        pairs = json.dumps({"audit": rows, "pairs": [], **changes}).encode()
        manifest = self.object("audit.json", b"{}")
        common = {"task": "audit-1", "version": 1, "stage": 0}
        self.record(m.Audit, committee=self.spec, trust=TRUST, audit=manifest, seed=1, **common)
        self.record(
            m.AuditDone,
            frames=1,
            trajectories=1,
            force=0.05,
            force_upper=float("inf"),
            exceed=0.0,
            exceed_upper=1.0,
            deviation_over_error=0.4,
            pairs=self.object("pairs.json", pairs),
            **common,
        )

    def end(self, first: Ref) -> None:
        """The round is judged, the final model trained, the campaign finished."""
        counts = {"methane 50 K": Counts(accurate=2, candidate=3, failed=5)}
        verdict = {"outcome": "stuck", "why": "20.0% accurate, below 95.0%"}
        self.record(m.RoundJudged, stage=0, round=1, version=1, counts=counts, **verdict)
        self.record(m.StageEnded, stage=0, verdict="stuck", why="nothing left to label")
        final = self.dataset(2, [self.label_of(TRAINED).label], first)
        self.member("final", final, 2, 0, final=True)
        self.record(m.CampaignFinished, verdict="not-converged", why="stage cold ended stuck")


def write_sample(root: Path, **pairs: Any) -> FolderStore:
    """A finished campaign."""
    teller = LedgerWriter(root)
    teller.beginning()
    first = teller.training()
    teller.exploration()
    teller.audit(**pairs)
    teller.end(first)
    return teller.write()


def write_beginning(root: Path) -> FolderStore:
    """A campaign that has just been submitted."""
    teller = LedgerWriter(root)
    teller.beginning()
    return teller.write()


def write_half(root: Path) -> FolderStore:
    """A campaign that is exploring: new labels wait for the next dataset version."""
    teller = LedgerWriter(root)
    teller.beginning()
    teller.training()
    teller.exploration()
    return teller.write()


def write_with_proposals(root: Path) -> FolderStore:
    """A campaign that is exploring, to which a generator has proposed structures."""
    teller = LedgerWriter(root)
    teller.beginning()
    teller.training()
    teller.proposals()
    teller.exploration()
    return teller.write()
