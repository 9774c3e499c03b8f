"""Where a campaign stands: plain values, counted from its state.

The API sends them as they are; status, live view, metrics, dashboard and report show them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dpstream.services.coordinator.ledger.archive_mark import ArchiveMark
from dpstream.services.coordinator.rules.convergence import by_condition
from dpstream.services.coordinator.state import KnownFrame, SettledFrame, State, counted_as
from dpstream.shared.codec import kind_of
from dpstream.shared.cross_check import largest
from dpstream.shared.messages import CampaignAmended, CampaignFinished, Message
from dpstream.shared.values import Counts


class View(BaseModel):
    model_config = ConfigDict(frozen=True)


class LabelCounts(View):
    """Frames whose label was requested, by outcome; `audits` and `reused` are among `labelled`."""

    labelled: int
    reused: int
    audits: int
    rejected: int
    pending: int


class MemberErrors(View):
    """Force RMSE of one member of the newest committee, eV/Å; none while the next one trains."""

    version: int
    member: int
    train: float
    audit: float | None
    test: float | None


class AuditError(View):
    """Force RMSE on audit frames and its 95 % upper bound (None: not bounded), eV/Å."""

    version: int
    frames: int
    force: float | None
    force_upper: float | None


class StageVerdict(View):
    name: str
    verdict: str
    why: str


class AmendedPlan(View):
    """An amended plan in force, and how it differs from the one before."""

    number: int
    author: str
    time: float = Field(description="s since the epoch")
    changes: tuple[str, ...]


class CampaignOverview(View):
    name: str
    standing: Literal["running", "paused", "finished", "broken"]
    headline: str
    mode: str = ""
    plan: AmendedPlan | None = Field(default=None, description="None: as it was submitted")
    plans_waiting: int = Field(
        default=0, description="amendments that wait for the end of the round"
    )
    stage: str | None = None
    stages: int = 0
    stages_over: int = 0
    ended: tuple[StageVerdict, ...] = Field(default=(), description="stages that are over")
    round: int = 0
    rounds: int = Field(default=0, description="at most so many in a stage")
    version: int = Field(default=0, description="of the newest committee; 0: none yet")
    training: int | None = Field(default=None, description="version in training")
    paused: str | None = None
    verdict: str | None = None
    why: str | None = None
    archived: str | None = Field(
        default=None, description="file to which the ended campaign was archived"
    )
    shares: dict[str, Counts] = Field(
        default={}, description="frames of the running round by condition, dropped ones failed"
    )
    cross_check: str = Field(
        default="", description="how imported labels compare with the recipe; empty: not known"
    )
    imports_differ: bool = Field(
        default=False,
        description="whether it is paused as imported labels disagree, and resume accepts them",
    )
    accurate_ratio: float = Field(
        default=0.0, description="accurate share that every condition needs"
    )
    max_failed: float = Field(default=1.0, description="failed share that no condition may exceed")
    labels: LabelCounts | None = None
    label_budget: int = 0
    budget_used: int = Field(default=0, description="labels of the budget that were requested")
    pool: int = Field(default=0, description="candidate frames waiting to be chosen from")
    errors: tuple[MemberErrors, ...] = ()
    audit: AuditError | None = None
    tasks: dict[str, dict[str, int]] = Field(default={}, description="by kind and status")
    declined: dict[str, tuple[str, ...]] = Field(
        default={},
        description="what workers lack that have declined tasks, by queue, since one was claimed",
    )
    preemptions: int = Field(
        default=0, description="attempts released because their worker had to stop"
    )
    work_lost_seconds: float = Field(
        default=0.0, description="work of these attempts, and of lost workers, that was done again"
    )

    @property
    def counts(self) -> Counts:
        """Frames of the running round, all conditions together."""
        return sum(self.shares.values(), Counts())


class LabelLine(View):
    key: str
    status: str
    purpose: str
    stage: int = Field(description="counted from 1; 0: before the first")
    version: int = Field(description="of the committee that judged the frame; 0: none")
    trajectory: str
    label: str | None = Field(description="key of the label's object")


def headline(state: State) -> str:
    """Stage, committee version and round in one line; at the end, the verdict."""
    if state.finished is not None:
        return verdict_line(state.finished)
    if state.paused is not None:
        return f"paused: {state.paused}"
    if state.is_comparing:
        done = len(state.cross_check.compared)
        return f"cross-check: {done} of {len(state.imported)} imported labels compared"
    if state.stages_over:
        return "all stages finished; final model in progress"
    stage, committee = state.exploration.stage, state.committee
    return (
        f"stage {state.spec.stages[stage.index].name}"
        f" ({len(state.exploration.ended) + 1} of {len(state.planned)})"
        f" · {_committee_words(committee.version, committee.training)}"
        f" · round {stage.rounds} of at most {_most_rounds(state)}"
    )


def _committee_words(version: int, training: int | None) -> str:
    if not version:
        return "no committee yet" if training is None else f"training committee {training}"
    return f"committee {version}" + ("" if training is None else f", training {training}")


def _most_rounds(state: State) -> int:
    """Of the stage under way."""
    if state.stages_over or state.spec.stages[state.exploration.stage.index].repeat:
        return state.spec.budget.rounds
    return 1


def is_over(state: State) -> bool:
    """Whether nothing more happens by itself."""
    return state.finished is not None or state.paused is not None


def verdict_line(finished: CampaignFinished) -> str:
    return f"{finished.verdict}: {finished.why}"


def finished_overview(finished: CampaignFinished, mark: ArchiveMark | None) -> CampaignOverview:
    """Of a campaign that has ended, without its ledger."""
    return CampaignOverview(
        name=finished.campaign,
        standing="finished",
        headline=verdict_line(finished),
        verdict=finished.verdict,
        why=finished.why,
        archived=None if mark is None else mark.file,
    )


def has_taken_in(state: State, message: Message) -> bool:
    """Whether the coordinator has written down a person's message, or will no longer need it."""
    if message.id in state.handled:
        return True
    if state.finished is not None and not isinstance(message, CampaignAmended):
        return True
    return state.submitted is not None and state.submitted.id == message.id


def headline_of(now: CampaignOverview, plan: int, is_done: bool) -> str:
    """That a plan is in force, or waits, and where the campaign stands. `is_done`: its own changes
    are in force, even if plans before it wait."""
    number = now.plan.number if now.plan is not None else 1
    how = "accepted; in force when the running round has ended"
    if is_done:
        how = "accepted; its changes are in force, those before it when the running round has ended"
    if number >= plan:
        how = "in force"
    return f"{now.name}: plan {plan} is {how}; {now.headline}"


def standing(state: State) -> Literal["running", "paused", "finished"]:
    if state.finished is not None:
        return "finished"
    return "running" if state.paused is None else "paused"


def overview(state: State, mark: ArchiveMark | None = None) -> CampaignOverview:
    """`mark`: of a campaign that is archived."""
    spec, stage = state.spec, state.exploration.stage
    return CampaignOverview(
        name=spec.name,
        standing=standing(state),
        headline=headline(state),
        mode=spec.mode,
        plan=_amended_plan(state),
        plans_waiting=len(state.plan.asked),
        stage=None if state.stages_over else spec.stages[stage.index].name,
        stages=len(state.planned),
        stages_over=len(state.exploration.ended),
        ended=tuple(
            StageVerdict(name=spec.stages[end.stage].name, verdict=end.verdict, why=end.why)
            for end in state.exploration.ended
        ),
        round=stage.rounds,
        rounds=_most_rounds(state),
        version=state.committee.version,
        training=state.committee.training,
        paused=state.paused,
        verdict=state.finished.verdict if state.finished else None,
        why=state.finished.why if state.finished else None,
        archived=None if mark is None else mark.file,
        shares=_shares(state),
        cross_check=_cross_check(state),
        imports_differ=state.paused is not None and state.cross_check.awaits_acceptance,
        accurate_ratio=spec.convergence.accurate_ratio,
        max_failed=spec.convergence.max_failed,
        labels=label_counts(state),
        label_budget=spec.budget.labels,
        budget_used=spec.budget.labels - state.label_room,
        pool=pool_size(state),
        errors=tuple(_errors(state)),
        audit=_audit(state),
        tasks=task_counts(state),
        declined={queue: each.reasons for queue, each in state.declined.items()},
        preemptions=state.lost.preemptions,
        work_lost_seconds=state.lost.microseconds / 1e6,
    )


def _amended_plan(state: State) -> AmendedPlan | None:
    if not state.plan.records:
        return None
    last = state.plan.records[-1]
    return AmendedPlan(number=last.number, author=last.author, time=last.time, changes=last.changes)


def _shares(state: State) -> dict[str, Counts]:
    """Of the running round, by condition."""
    current = state.exploration.round
    return by_condition(current) if current else {}


def _cross_check(state: State) -> str:
    compared = [each for each in state.cross_check.compared.values() if not each.rejected]
    if not compared:
        return ""
    forces, energies = largest(compared)
    return (
        f"{len(compared)} computed again: forces within {forces:.2g} eV/Å, energies within "
        f"{energies:.2g} eV/atom"
    )


def label_counts(state: State) -> LabelCounts:
    purposes = labels_by_purpose(state)
    return LabelCounts(
        labelled=sum(purposes.values()),
        reused=state.labels.reused,
        audits=purposes["audit"],
        rejected=sum(frame.status == "rejected" for frame in state.labels.frames.values()),
        pending=state.labels.pending,
    )


def labels_by_purpose(state: State) -> Counter[str]:
    """Labelled frames."""
    frames = state.labels.frames.values()
    counted = Counter[str](frame.purpose for frame in frames if frame.status == "labelled")
    return counted + Counter(state.archive.frames_by_purpose)


def pool_size(state: State) -> int:
    return sum(item.count for item in state.candidates.pool.values())


def task_counts(state: State) -> dict[str, dict[str, int]]:
    """By kind and status."""
    counted = Counter(counted_as(kind_of(t.command), t.status) for t in state.tasks.values())
    kinds: dict[str, dict[str, int]] = {}
    for name, count in sorted((counted + Counter(state.archive.tasks_by_status)).items()):
        kind, status = name.split()
        kinds.setdefault(kind, {})[status] = count
    return kinds


def _errors(state: State) -> Iterator[MemberErrors]:
    for member in sorted(state.committee.members.values(), key=lambda member: member.member):
        yield MemberErrors(
            version=member.version,
            member=member.member,
            train=member.train.force,
            audit=member.audit.force if member.audit else None,
            test=member.test.force if member.test else None,
        )


def _audit(state: State) -> AuditError | None:
    audit = state.exploration.stage.audit
    if audit is None:
        return None
    return AuditError(
        version=audit.version,
        frames=audit.frames,
        force=_finite(audit.force),
        force_upper=_finite(audit.force_upper),
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def label_line(frame: KnownFrame) -> LabelLine:
    return LabelLine(
        key=frame.ref.key,
        status=frame.status,
        purpose=frame.purpose,
        stage=frame.stage + 1,
        version=frame.version,
        trajectory=frame.origin,
        label=frame.label.uri if frame.label else None,
    )


def settled_line(key: str, frame: SettledFrame) -> LabelLine:
    return LabelLine(
        key=key,
        status="labelled",
        purpose=frame.purpose,
        stage=frame.stage + 1,
        version=frame.version,
        trajectory=frame.origin,
        label=frame.label,
    )
