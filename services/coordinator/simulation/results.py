"""The results of commands, without engines: what workers would publish.

The same command always gives the same results, so that campaigns can be run to their end under any
order of deliveries, in tests and in simulations. Nothing is computed: references lead to no object.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpstream.shared import messages as m
from dpstream.shared.cross_check import ComparedLabel
from dpstream.shared.values import (
    Accepted,
    CandidatePool,
    Chosen,
    Compared,
    Counts,
    Dataset,
    DeviceFacts,
    FrameRef,
    Offered,
    OfferedFrame,
    PoolItem,
    Ref,
    Rejected,
    Rmse,
    Screened,
    stable_id,
)


def key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def offered_key(frame: OfferedFrame) -> str:
    return key("offered", frame)


def ref(name: str) -> Ref:
    return Ref.to(f"objects/{name}", name.encode())


@dataclass
class SimulatedResults(ABC):
    """The results of a campaign's commands. Subclasses say what exploration finds, and what is
    accepted, reused and measured."""

    checks: int = 10
    """Of a trajectory."""
    chunks: int = 2
    """Of a trajectory that is not pinned."""
    named: int = 3
    """Frames that one event names."""
    force_error: float = 0.03
    """Force RMSE of every model, eV/Å."""
    reservoir: int = 3
    """Frames of a trajectory from which audits are drawn."""
    device: DeviceFacts | None = None
    """What trainers train on."""
    manifests: dict[str, str] = field(default_factory=dict)
    """What decisions have written to the store, by key."""
    offered: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Indices and keys of offered frames in a batch, by its key."""

    # ------------------------------------------------------------------- what subclasses say

    @abstractmethod
    def is_ripe(self, version: int) -> bool:
        """Whether a committee finds all candidates and offered frames accurate."""

    @abstractmethod
    def found(self, command: m.Explore, checks: int) -> int:
        """Candidates among this many checks of a trajectory."""

    def rejects(self, frame: str) -> bool:
        return False

    def writer(self, frame: str) -> str | None:
        """Writer of a label that is in the store already, '' without a signature; None: it is not
        there."""
        return None

    def label_seconds(self, frame: str) -> float:
        return 0.0

    def off(self, version: int) -> float:
        """How far the properties by a committee are from the recipe's, as a share; the final model
        counts as version 0."""
        return 0.0

    def audit_errors(self, version: int) -> tuple[float, float]:
        """Force RMSE on audit frames, eV/Å, and the upper bound of the share above the target."""
        return 0.05 if self.is_ripe(version) else 0.5, 0.1

    def difference(self, frame: str) -> str:
        """How a reused label differs from a new one; empty if it agrees."""
        return ""

    def compared(self, frame: str) -> ComparedLabel | None:
        """An imported label beside a new one; None for another frame."""
        return None

    # --------------------------------------------------------------------------------- answers

    def learn(self, decision: m.Message) -> None:
        """Remember what a decision writes to the store."""
        if isinstance(decision, m.ManifestFrozen):
            self.manifests[decision.manifest.uri] = decision.body

    def answer(self, command: Any) -> list[m.Message]:
        """The claim and the results of one command."""
        claimed = m.TaskClaimed(**self.envelope(command, "claim"), worker="w")
        return [claimed, *self.results(command)]

    def results(self, command: Any) -> list[m.Message]:
        """The results of one command, in the order in which they are published."""
        found: list[m.Message] = getattr(self, f"_{type(command).__name__.lower()}")(command)
        return found

    @staticmethod
    def envelope(command: Any, what: object = "result") -> dict[str, Any]:
        return {
            "id": stable_id(command.task, command.attempt, what),
            "campaign": command.campaign,
            "time": 2.0,
            "task": command.task,
            "attempt": command.attempt,
        }

    def _train(self, command: m.Train) -> list[m.Message]:
        rmse = Rmse(frames=5, energy=0.001, force=self.force_error, rms_force=1.0)
        model = ref(f"model-{command.version}-{command.member}")
        return [
            m.MemberTrained(
                **self.envelope(command),
                version=command.version,
                member=command.member,
                steps=command.steps,
                model=model,
                frozen=model,
                compressed=False,
                checkpoint=model,
                lcurve=model,
                train=rmse,
                audit=rmse if command.audit else None,
                test=rmse if command.test else None,
                device=self.device,
            )
        ]

    def _explore(self, command: m.Explore) -> list[m.Message]:
        chunks = self.chunks_of(command)
        return [
            self._chunk(command, number, checks, last=number == len(chunks) - 1)
            for number, checks in enumerate(chunks)
            if number >= command.from_chunk
        ]

    def chunks_of(self, command: m.Explore) -> list[int]:
        """Checks of each chunk of a trajectory."""
        chunks = 1 if command.pinned else self.chunks
        return [self.checks // chunks] * chunks

    def _chunk(self, command: m.Explore, number: int, checks: int, last: bool) -> m.Message:
        found = self.found(command, checks)
        item = PoolItem(
            frames=ref(f"{command.trajectory}-{command.version}-{number}"),
            count=found,
            trajectory=command.trajectory,
            condition=command.condition,
            version=command.version,
            planned_ps=0.1,
        )
        reservoir = item.model_copy(
            update={"frames": ref(f"reservoir-{command.trajectory}"), "count": self.reservoir}
        )
        return m.ChunkExplored(
            **self.envelope(command, number),
            version=command.version,
            chunk=number,
            last=last,
            counts=Counts(accurate=checks - found, candidate=found),
            candidates=item if found else None,
            reservoir=reservoir if last else None,
            restart=None if last else ref(f"restart-{command.trajectory}-{number}"),
            histogram=(checks,),
        )

    def _judge(self, command: m.Judge) -> list[m.Message]:
        accurate = self.is_ripe(command.version)
        pool = () if accurate else command.pool
        gone = [i.frames.uri for i in command.pool if accurate and i.frames.uri in self.offered]
        return [
            m.FramesJudged(
                **self.envelope(command),
                version=command.version,
                pool=tuple(i.model_copy(update={"version": command.version}) for i in pool),
                counts=Counts(),
                accurate=tuple(f.key for f in command.frames) if accurate else (),
                offered={name: "accurate" for uri in gone for _, name in self.offered[uri]},
            )
        ]

    def _screen(self, command: m.Screen) -> list[m.Message]:
        """Rejects argon; for frames in vacuum the committee version decides the verdict."""
        offered = Offered.model_validate_json(self.manifests[command.frames.uri])
        ripe = command.committee is not None and self.is_ripe(command.version)
        found, row = [], 0
        kept = self.offered[ref(f"offered-{command.proposal}").uri] = []
        for index, frame in enumerate(offered.frames, start=command.first):
            if "Ar" in frame.species:
                found.append(Screened(index=index, verdict="refused", reason="alien"))
                continue
            place = {} if ripe else {"batch": 0, "row": row}
            row += 1
            kept.append((index, offered_key(frame)))
            found.append(
                Screened(
                    index=index,
                    key=offered_key(frame),
                    verdict="accurate" if ripe else "candidate",
                    deviation=None if command.committee is None else 0.2,
                    **place,
                )
            )
        return [
            m.StructuresScreened(
                **self.envelope(command),
                version=command.version,
                batches=(ref(f"offered-{command.proposal}"),),
                found=tuple(found),
            )
        ]

    def _select(self, command: m.Select) -> list[m.Message]:
        pool = CandidatePool.model_validate_json(self.manifests[command.pool.uri])
        labels = [self._pick(i, n, "candidate") for i in pool.candidates for n in range(i.count)]
        audits = [self._pick(i, n, "reservoir") for i in pool.reservoirs for n in range(i.count)]
        labels = self.choose(command, sorted(labels, key=lambda c: c.key), pool)
        audits = sorted(audits, key=lambda c: c.key)[: command.audits]
        picks = [*((c, True) for c in labels), *((c, False) for c in audits)]
        starts = range(0, max(len(picks), 1), self.named)
        return [
            m.CandidatesSelected(
                **self.envelope(command, number),
                version=command.version,
                stage=command.stage,
                chunk=number,
                last=number == len(starts) - 1,
                batches=(ref(f"chosen-{command.task}"),),
                labels=tuple(c for c, train in picks[first : first + self.named] if train),
                audits=tuple(c for c, train in picks[first : first + self.named] if not train),
            )
            for number, first in enumerate(starts)
        ]

    def choose(self, command: m.Select, found: list[Chosen], pool: CandidatePool) -> list[Chosen]:
        """The candidates that are labelled."""
        return found[: command.labels]

    def _pick(self, item: PoolItem, number: int, why: str) -> Chosen:
        trajectory, name = item.trajectory, key(item.frames.uri, number)
        if item.frames.uri in self.offered:
            index, name = self.offered[item.frames.uri][number]
            trajectory = f"{trajectory}/{index}"
        return Chosen(
            batch=0,
            index=number,
            key=name,
            trajectory=trajectory,
            version=item.version,
            time_ps=0.01 * number,
            deviation=0.2,
            reason=why,
        )

    def frames_per_verdict(self, command: m.Label) -> int:
        """Frames of one message of a label task."""
        return 1

    def _label(self, command: m.Label) -> list[m.Message]:
        frames, size = command.frames, self.frames_per_verdict(command)
        starts = range(0, len(frames), size)
        return [
            self._labels_done(
                command, number, frames[first : first + size], number == len(starts) - 1
            )
            for number, first in enumerate(starts)
        ]

    def _labels_done(
        self, command: m.Label, number: int, frames: Sequence[FrameRef], last: bool
    ) -> m.Message:
        rejected = [
            Rejected(
                key=frame.key,
                rule="not-converged",
                detail="no",
                seconds=self.label_seconds(frame.key),
            )
            for frame in frames
            if self.rejects(frame.key)
        ]
        names = {each.key for each in rejected}
        accepted = [self._accepted(command, f.key) for f in frames if f.key not in names]
        return m.LabelsDone(
            **self.envelope(command, number),
            chunk=number,
            last=last,
            accepted=tuple(accepted),
            rejected=tuple(rejected),
        )

    def _accepted(self, command: m.Label, frame: str) -> Accepted:
        writer = self.writer(frame)
        reused = writer is not None and writer not in command.distrusted
        return Accepted(
            key=frame,
            label=ref(f"label-{frame}"),
            reused=reused,
            writer=(writer or None) if reused else None,
            max_force=1.0,
            seconds=self.label_seconds(frame),
        )

    def _checklabel(self, command: m.CheckLabel) -> list[m.Message]:
        differs = self.difference(command.frame.key)
        found = self.compared(command.frame.key)
        if found is None:
            found = ComparedLabel(forces=0.5 if differs else 1e-6)
        return [
            m.LabelChecked(
                **self.envelope(command),
                forces=None if found.rejected else found.forces,
                energy=None if found.rejected else found.energy,
                opposed=found.opposed,
                rejected=found.rejected,
                differs=differs,
            )
        ]

    def _reference(self, command: m.Reference) -> list[m.Message]:
        return [
            m.ReferenceDone(
                **self.envelope(command),
                trajectory=command.trajectory,
                pack=ref(f"reference-{command.trajectory}"),
                frames=5,
            )
        ]

    def _audit(self, command: m.Audit) -> list[m.Message]:
        error, exceed = self.audit_errors(command.version)
        return [
            m.AuditDone(
                **self.envelope(command),
                version=command.version,
                stage=command.stage,
                frames=4,
                trajectories=3,
                force=error,
                force_upper=error * 1.2,
                exceed=0.0,
                exceed_upper=exceed,
                deviation_over_error=0.5,
                pairs=ref("pairs"),
            )
        ]

    def _measure(self, command: m.Measure) -> list[m.Message]:
        found = self._compared(command.points, command.version)
        return [m.Measured(**self.envelope(command), version=command.version, properties=found)]

    def _compared(self, points: Ref, version: int) -> tuple[Compared, ...]:
        """One value for each property whose structures are labelled."""
        labelled = Dataset.model_validate_json(self.manifests[points.uri])
        assert len(labelled.labels) == len(labelled.origins)
        return tuple(
            Compared(
                property=int(number),
                name="elastic constant C11",
                unit="GPa",
                model=100.0 * (1 + self.off(version)),
                recipe=100.0,
            )
            for number in sorted(set(labelled.origins))
        )

    def _verify(self, command: m.Verify) -> list[m.Message]:
        rmse = Rmse(frames=5, energy=0.001, force=self.force_error, rms_force=1.0)
        return [
            m.Verified(
                **self.envelope(command),
                stable=True,
                drift=0.0,
                length_ps=10.0,
                test=rmse,
                properties=self._compared(command.points, 0) if command.points else (),
            )
        ]
