"""The history of every frame whose label was requested: chosen, labelled, trained on.

Built from the ledger, which also holds what did not count: messages delivered twice and late
results. As in the coordinator, the first verdict of a task on a frame stands. `why` puts one
history into words, the report counts them, and the export takes its data sets from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dpstream.services.coordinator.state import NEVER_LEARNED, Purpose
from dpstream.services.coordinator.views.plans import Plans
from dpstream.services.coordinator.views.projection import Changes, Projection
from dpstream.shared.messages import (
    CampaignAmended,
    CampaignSubmitted,
    CandidatesSelected,
    Explore,
    FramesJudged,
    Label,
    LabelsDone,
    ManifestFrozen,
    PlanChanged,
    StructuresJudged,
    TaskAbandoned,
    TaskClaimed,
    Train,
)
from dpstream.shared.values import Accepted, Chosen, Dataset, FrameRef, FrameVerdict, Ref, Rejected

ABANDONED = "abandoned"
"""The rule of frames whose label task was abandoned before it gave a verdict on them."""


@dataclass(frozen=True)
class Trained:
    """The first dataset version that held a label, and the first training on it."""

    dataset: int
    time: float
    command: Train | None = None


@dataclass
class FrameHistory:
    """One frame whose label was requested. `requested`: seconds since the epoch; `chosen`,
    `selection`: where it comes from (None: an initial frame, or one whose label a generator
    requested directly); `answered`: the result that the verdict comes from."""

    ref: FrameRef
    purpose: Purpose
    requested: float
    chosen: Chosen | None = None
    selection: CandidatesSelected | None = None
    tasks: list[Label] = field(default_factory=list)
    verdict: Accepted | Rejected | None = None
    answered: LabelsDone | TaskAbandoned | None = None
    trained: Trained | None = None
    judged_accurate: list[FramesJudged] = field(default_factory=list)
    plan: int = 1
    """Number of the plan under which its label was requested."""

    @property
    def is_for_training(self) -> bool:
        """Whether models learn from its label; the others measure them."""
        return self.purpose not in NEVER_LEARNED

    def awaits(self, task: str) -> bool:
        """Whether the verdict of that task on the frame would be its first."""
        answered = isinstance(self.answered, LabelsDone) and self.answered.task == task
        return not answered and any(command.task == task for command in self.tasks)

    @property
    def accepted(self) -> Accepted | None:
        return self.verdict if isinstance(self.verdict, Accepted) else None

    @property
    def rejected(self) -> Rejected | None:
        return self.verdict if isinstance(self.verdict, Rejected) else None


@dataclass
class History(Projection):
    """`lives`: histories of the frames, by key; `explored`: the first command of each trajectory,
    by its name; `claims`: by task and attempt; `datasets`: manifests in the order they were
    frozen; `test`: manifest of the held-out set; `screened`: verdicts on a frame that were
    published to its generators, by its key."""

    submitted: CampaignSubmitted | None = None
    lives: dict[str, FrameHistory] = field(default_factory=dict)
    explored: dict[str, Explore] = field(default_factory=dict)
    claims: dict[tuple[str, int], TaskClaimed] = field(default_factory=dict)
    datasets: list[ManifestFrozen] = field(default_factory=list)
    test: Ref | None = None
    screened: dict[str, list[tuple[StructuresJudged, FrameVerdict]]] = field(default_factory=dict)
    plans: Plans = field(default_factory=Plans)
    _by_label: dict[str, FrameHistory] = field(default_factory=dict)

    def _submitted(self, event: CampaignSubmitted) -> None:
        if self.submitted is not None:
            return
        self.submitted, self.test = event, event.test
        for ref in event.frames:
            self.lives.setdefault(ref.key, FrameHistory(ref, "initial", event.time))
        for ref in (ref for refs in event.points for ref in refs):
            self.lives.setdefault(ref.key, FrameHistory(ref, "property", event.time))

    def _selected(self, event: CandidatesSelected) -> None:
        picked: dict[Purpose, tuple[Chosen, ...]] = {"train": event.labels, "audit": event.audits}
        for purpose, picks in picked.items():
            for chosen in picks:
                ref = chosen.frame_ref(event.batches)
                life = FrameHistory(ref, purpose, event.time, chosen, event, plan=self.plans.number)
                self.lives.setdefault(chosen.key, life)

    def _planned(self, decision: PlanChanged) -> None:
        self.plans.add(decision)
        amendment = self.plans.asked.get(decision.amendment)
        for ref in () if amendment is None else amendment.frames:
            life = FrameHistory(ref, "initial", decision.time, plan=decision.number)
            self.lives.setdefault(ref.key, life)

    def _judged(self, event: FramesJudged) -> None:
        for key in event.accurate:
            if key in self.lives:
                self.lives[key].judged_accurate.append(event)

    def _screened(self, event: StructuresJudged) -> None:
        for verdict in event.verdicts:
            if verdict.key is not None:
                self.screened.setdefault(verdict.key, []).append((event, verdict))

    def _issued(self, command: Label) -> None:
        for ref in command.frames:
            new = FrameHistory(ref, "proposed", command.time)
            life = self.lives.setdefault(ref.key, new)
            life.tasks.append(command)
            if isinstance(life.answered, TaskAbandoned):  # it is tried again
                life.verdict = life.answered = None

    def _labelled(self, event: LabelsDone) -> None:
        verdicts: list[Accepted | Rejected] = [*event.accepted, *event.rejected]
        for verdict in verdicts:
            life = self.lives.get(verdict.key)
            if life is None or life.accepted is not None or not life.awaits(event.task):
                continue
            is_first = life.verdict is None or isinstance(life.answered, TaskAbandoned)
            if is_first or isinstance(verdict, Accepted):
                life.verdict, life.answered = verdict, event
            if isinstance(verdict, Accepted):
                self._by_label[verdict.label.uri] = life

    def _abandoned(self, event: TaskAbandoned) -> None:
        why = f"{event.title}: {event.why}"
        for life in self.lives.values():
            if life.verdict is None and any(each.task == event.task for each in life.tasks):
                life.verdict = Rejected(key=life.ref.key, rule=ABANDONED, detail=why)
                life.answered = event

    def _frozen(self, decision: ManifestFrozen) -> None:
        if decision.purpose == "test":
            self.test = decision.manifest
        if decision.purpose != "dataset":
            return
        self.datasets.append(decision)
        dataset = Dataset.model_validate_json(decision.body)
        for ref in dataset.labels:
            life = self._by_label.get(ref.uri)
            if life is not None and life.trained is None:
                life.trained = Trained(dataset.version, decision.time)

    def _trained(self, command: Train) -> None:
        if not self.datasets or command.dataset != self.datasets[-1].manifest:
            return
        version = Dataset.model_validate_json(self.datasets[-1].body).version
        for life in self.lives.values():
            known = life.trained
            if known is not None and known.dataset == version and known.command is None:
                life.trained = Trained(version, known.time, command)

    CHANGES: ClassVar[Changes] = {
        CampaignSubmitted: _submitted,
        CampaignAmended: lambda history, event: history.plans.add(event),
        PlanChanged: _planned,
        CandidatesSelected: _selected,
        Explore: lambda history, command: history.explored.setdefault(command.trajectory, command),
        TaskClaimed: lambda history, claim: history.claims.setdefault(
            (claim.task, claim.attempt), claim
        ),
        FramesJudged: _judged,
        StructuresJudged: _screened,
        TaskAbandoned: _abandoned,
        Label: _issued,
        LabelsDone: _labelled,
        ManifestFrozen: _frozen,
        Train: _trained,
    }
