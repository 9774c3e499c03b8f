"""Completes every command at once, without engines and always with the same result, so that tests
can drive the policy to the end of a campaign under any order of deliveries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dpstream.shared import messages as m
from dpstream.shared.spec import Spec
from dpstream.shared.values import (
    Accepted,
    Chosen,
    Compared,
    Counts,
    Dataset,
    DeviceFacts,
    FrameRef,
    Offered,
    OfferedFrame,
    Pool,
    PoolItem,
    Recipe,
    Ref,
    Rejected,
    Rmse,
    Screened,
    stable_id,
)

CHECKS = 10
NAMED = 3
"""Frames that one event names."""
DEVICE = DeviceFacts(
    kind="cuda",
    model="NVIDIA H200",
    memory_mib=143771,
    driver="580.159.04",
    runtime="13.0",
    backend="pytorch 2.11.0",
    precision="float64",
)
RECIPE = Recipe(
    code="tblite", version="1", settings={"method": "GFN2-xTB"}, charge=0, multiplicity=1
)


def spec(**changes: Any) -> Spec:
    data: dict[str, Any] = {
        "name": "world",
        "mode": "lockstep",
        "type_map": ["H", "C"],
        "systems": {"methane": {"structures": ["x"]}},
        "initial": {"perturb": {"copies": 6}},
        "training": {"members": 3},
        "md": {"steps": 100, "every": 10, "trajectories": 2, "chunk": 5},
        "trust": {"low": 0.1, "high": 0.3},
        "stages": [
            {"name": "cold", "systems": ["methane"], "temperatures": [50.0, 100.0]},
            {"name": "hot", "systems": ["methane"], "temperatures": [300.0]},
        ],
        "selection": {"per_round": 4, "select_every": 2},
        "labels": {"bundle": 3},
        "audit": {"per_round": 3, "min_frames": 4, "min_trajectories": 2},
        "convergence": {"rounds": 1},
        "streaming": {"retrain_after": 3},
        "verification": {
            "reference_md": {"system": "methane", "trajectories": 2},
        },
    }
    return Spec.model_validate(data | changes)


def key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def offered_key(frame: OfferedFrame) -> str:
    return key("offered", frame)


def ref(name: str) -> Ref:
    return Ref.to(f"objects/{name}", name.encode())


PROPERTIES = [{"property": "elastic", "system": "methane", "tolerance": 0.05}]
POINTS = 3
"""Structures per property."""


def point_keys(of: Spec) -> set[str]:
    wanted = range(len(of.verification.properties))
    return {key("point", number, i) for number in wanted for i in range(POINTS)}


def submission(of: Spec, frames: int = 6) -> m.CampaignSubmitted:
    start = FrameRef(batch=ref("start"), index=0, key=key("start"))
    return m.CampaignSubmitted(
        id=stable_id("campaign", of.name),
        campaign=of.name,
        time=1.0,
        spec=ref("spec"),
        frames=tuple(
            FrameRef(batch=ref("initial"), index=i, key=key("initial", i)) for i in range(frames)
        ),
        systems=dict.fromkeys(of.systems, (start,)),
        atoms=dict.fromkeys(of.systems, 5),
        recipe=RECIPE,
        points=tuple(
            tuple(
                FrameRef(batch=ref("points"), index=i, key=key("point", number, i))
                for i in range(POINTS)
            )
            for number in range(len(of.verification.properties))
        ),
    )


class CampaignSimulator:
    """Answers commands. `ripe`: the committee version from which on all frames are accurate. `off`:
    how far the elastic constant by a committee version is from the recipe's, as a share; the
    final model counts as version 0. `label_seconds`: of each label; at 0 the times do not determine
    how many frames a label task has. `writer`: of the label of a frame that is in the store
    already, None for a frame without one; `wrong`: writers whose labels are."""

    def __init__(
        self,
        ripe: int = 3,
        reject: Callable[[str], bool] = lambda key: False,
        off: Callable[[int], float] = lambda version: 0.04,
        label_seconds: float = 0.0,
        writer: Callable[[str], str | None] = lambda key: None,
        wrong: Collection[str] = (),
    ) -> None:
        self.ripe, self.reject, self.off = ripe, reject, off
        self.label_seconds = label_seconds
        self.writer, self.wrong = writer, wrong
        self.manifests: dict[str, str] = {}
        self.labelled: list[str] = []
        self.offered: dict[str, list[tuple[int, str]]] = {}
        """Indices and keys of offered frames in a batch, by its key."""

    def learn(self, decision: m.Message) -> None:
        """Remember what a decision writes to the store."""
        if isinstance(decision, m.ManifestFrozen):
            self.manifests[decision.manifest.uri] = decision.body

    def answer(self, command: Any) -> list[m.Message]:
        """The claim and the results of one command."""
        claimed = m.TaskClaimed(**self.envelope(command, "claim"), worker="w")
        results: list[m.Message] = getattr(self, f"_{type(command).__name__.lower()}")(command)
        return [claimed, *results]

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
        rmse = Rmse(frames=5, energy=0.001, force=0.03, rms_force=1.0)
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
                device=DEVICE,
            )
        ]

    def _explore(self, command: m.Explore) -> list[m.Message]:
        accurate = command.version >= self.ripe + 2 * command.stage
        chunks = 1 if command.pinned else 2
        each = CHECKS // chunks
        return [
            self._chunk(command, number, each, accurate, last=number == chunks - 1)
            for number in range(command.from_chunk, chunks)
        ]

    def _chunk(
        self, command: m.Explore, number: int, checks: int, accurate: bool, last: bool
    ) -> m.Message:
        found = 0 if accurate else 2
        item = PoolItem(
            frames=ref(f"{command.trajectory}-{command.version}-{number}"),
            count=found,
            trajectory=command.trajectory,
            condition=command.condition,
            version=command.version,
            planned_ps=0.1,
        )
        reservoir = item.model_copy(
            update={"frames": ref(f"reservoir-{command.trajectory}"), "count": 3}
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
        accurate = command.version >= self.ripe
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
        ripe = command.committee is not None and command.version >= self.ripe
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
        pool = Pool.model_validate_json(self.manifests[command.pool.uri])
        labels = [self._pick(i, n, "candidate") for i in pool.candidates for n in range(i.count)]
        audits = [self._pick(i, n, "reservoir") for i in pool.reservoirs for n in range(i.count)]
        labels = sorted(labels, key=lambda c: c.key)[: command.labels]
        audits = sorted(audits, key=lambda c: c.key)[: command.audits]
        picks = [*((c, True) for c in labels), *((c, False) for c in audits)]
        starts = range(0, max(len(picks), 1), NAMED)
        return [
            m.CandidatesSelected(
                **self.envelope(command, number),
                version=command.version,
                stage=command.stage,
                chunk=number,
                last=number == len(starts) - 1,
                batches=(ref(f"chosen-{command.task}"),),
                labels=tuple(c for c, train in picks[first : first + NAMED] if train),
                audits=tuple(c for c, train in picks[first : first + NAMED] if not train),
            )
            for number, first in enumerate(starts)
        ]

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

    def _label(self, command: m.Label) -> list[m.Message]:
        """A chunk has as many frames as the number of the attempt: attempts divide them
        differently."""
        frames, size = command.frames, command.attempt
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
        accepted, rejected = [], []
        for frame in frames:
            self.labelled.append(frame.key)
            if self.reject(frame.key):
                rejected.append(Rejected(key=frame.key, rule="not-converged", detail="no"))
            else:
                writer = self.writer(frame.key)
                reused = writer is not None and writer not in command.distrusted
                accepted.append(
                    Accepted(
                        key=frame.key,
                        label=ref(f"label-{frame.key}"),
                        reused=reused,
                        writer=(writer or None) if reused else None,
                        max_force=1.0,
                        seconds=self.label_seconds,
                    )
                )
        return m.LabelsDone(
            **self.envelope(command, number),
            chunk=number,
            last=last,
            accepted=tuple(accepted),
            rejected=tuple(rejected),
        )

    def _checklabel(self, command: m.CheckLabel) -> list[m.Message]:
        wrong = self.writer(command.frame.key) in self.wrong
        return [
            m.LabelChecked(
                **self.envelope(command),
                forces=0.5 if wrong else 1e-6,
                energy=0.0,
                differs="its forces differ by up to 0.5 eV/Å" if wrong else "",
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
        error = 0.05 if command.version >= self.ripe else 0.5
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
                exceed_upper=0.1,
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
        rmse = Rmse(frames=5, energy=0.001, force=0.03, rms_force=1.0)
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
