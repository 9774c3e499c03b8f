"""Decides which frames are labelled, and freezes lists of labelled frames into manifests.

Every frame whose label was requested waits in `state.labels.waiting` until `label_waiting` puts it
into a Label task. Labels come back one by one; audits, properties and the held-out set need lists
of them, which travel as manifests because a message has no room for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from dpstream.services.coordinator.decisions import Decisions, frozen_once, is_decided
from dpstream.services.coordinator.rules.cross_check import compute_again
from dpstream.services.coordinator.rules.trust import stage_of
from dpstream.services.coordinator.state import KnownFrame, State
from dpstream.shared import messages as m
from dpstream.shared.spec import AutoTrust
from dpstream.shared.values import Dataset, FrameRef, Ref, is_offered, stable_id, stable_seed

BUNDLE_SECONDS = 1.0
"""Work in a label task, s: much more than a message costs, and little to lose."""
MEND = (
    "If a labeler is the cause, fix it and resume: these frames are labelled again. If "
    "labels.settings are, cancel and start a campaign with others"
)
AGAIN = "They were labelled again; resume goes on without them, cancel ends the campaign"
MOST_FRAMES = 100
"""Most frames that a label task may have."""


def begin_references(decisions: Decisions) -> None:
    """Issues the reference dynamics for the held-out set, which runs alongside the loop."""
    state = decisions.state
    reference, submitted = state.spec.verification.reference_md, state.submitted
    assert submitted is not None
    if reference is None or is_decided(state, m.Reference, 0):
        return
    structures = submitted.systems[reference.system]
    for number in range(reference.trajectories):
        decisions.command(
            m.Reference,
            number,
            title=f"reference trajectory {number}",
            capability=state.spec.labels.capability,
            recipe=submitted.recipe.digest,
            structure=structures[number % len(structures)],
            trajectory=number,
            seed=stable_seed(state.spec.seed, "reference", number),
        )


def check_reused(decisions: Decisions) -> None:
    """Has reused labels computed again, as far as they are in the sample."""
    state = decisions.state
    for key in sorted(state.labels.unissued_checks):
        title, frame = "check a reused label", state.labels.frames[key].ref
        label = state.labels.checks[key].label
        compute_again(decisions, key, title=title, frame=frame, label=label)


def distrust(decisions: Decisions) -> None:
    """Pauses the campaign after a reused label that was wrong."""
    event = decisions.event
    assert isinstance(event, m.LabelChecked)
    command = decisions.before.tasks[event.task].command
    assert isinstance(command, m.CheckLabel)
    if decisions.state.is_of_import(command):
        return
    key = command.frame.key
    check = decisions.state.labels.checks.get(key)
    if check is None or check.status != "differs":
        return
    writer = check.writer
    of = f"of the labeler {writer}" if writer else "without signature"
    decisions.fact(
        m.CampaignPaused,
        key,
        why=f"the reused label of frame {key} is wrong: {event.differs}. Labels {of} are not "
        "used again in this campaign; those in its dataset are listed in its report. See "
        "docs/security.md before you resume it",
    )


def pause_failing(decisions: Decisions) -> None:
    """Pauses the campaign after so many frames were rejected alike, and none accepted, that the
    recipe or the labelers must be the cause."""
    event, state = decisions.event, decisions.state
    assert isinstance(event, m.LabelsDone)
    failures = state.labels.failures
    if failures is None or not state.is_failing or state.paused is not None:
        return
    alike = {kind: len(keys) for kind, keys in failures.items()}
    last = max(event.rejected, key=lambda each: (alike.get(each.kind, 0), each.key), default=None)
    if last is None or state.finished is not None:
        return
    decisions.fact(
        m.CampaignPaused,
        event.id,
        why=f"{alike.get(last.kind, 0)} frames were rejected alike and no label was accepted: "
        f"{last.rule}: {last.detail}. {AGAIN if state.labels.failures_retried else MEND}",
        labels_fail=True,
    )


def label_waiting(decisions: Decisions) -> None:
    """Issues Label tasks for the frames that wait for one, in bundles."""
    state = decisions.state
    if not state.labels.waiting:
        return
    assert state.submitted is not None
    for priority, refs in _bundles(state):
        decisions.command(
            m.Label,
            *_new_task_identity(state, state.committee.version, *(ref.key for ref in refs)),
            title=f"label {len(refs)} frames",
            capability=state.spec.labels.capability,
            recipe=state.submitted.recipe.digest,
            frames=refs,
            priority=priority,
            distrusted=state.labels.distrusted,
            max_seconds=state.spec.labels.max_seconds * len(refs),
        )


def _bundles(state: State) -> Iterator[tuple[int, tuple[FrameRef, ...]]]:
    """Bundles of waiting frames, with their priority. Frames of different generators never share a
    task, so that a frame that crashes the labeling code affects only its own generator."""

    def owner(key: str) -> tuple[int, str]:
        offer = state.proposals.offers.get(key)
        return (0, "") if offer is None else (-offer.priority, offer.source)

    busy = state.running.get(m.Label.__name__, 0)
    for (rank, _), group in groupby(sorted(sorted(state.labels.waiting), key=owner), owner):
        keys, begin = list(group), 0
        while begin < len(keys):
            end = begin + _frames_per_task(state, len(keys) - begin, busy)
            yield -rank, tuple(state.labels.frames[key].ref for key in keys[begin:end])
            begin = end


def _frames_per_task(state: State, left: int, busy: int) -> int:
    """As many frames as take about `BUNDLE_SECONDS` by the labels so far, at most `labels.bundle`.
    The last tasks for `left` frames are smaller, so that all workers end at about the same time.
    Before the first label, and where the ledger must not depend on times, `labels.bundle` or 1."""
    labels, most = state.labels, state.spec.labels.bundle
    if not labels.microseconds or state.spec.starts_over:
        return most or 1
    usual = labels.microseconds / labels.computed / 1e6
    share = math.ceil(left / (2 * max(1, busy)))
    return max(1, min(most or MOST_FRAMES, int(BUNDLE_SECONDS / usual), share))


def _new_task_identity(state: State, *what: object) -> tuple[object, ...]:
    """`what`, extended until no task has this identity: the same frames may be requested again
    after their task was revoked."""
    while is_decided(state, m.Label, *what):
        what = (*what, "again")
    return what


def freeze_test(decisions: Decisions) -> None:
    """Freezes the held-out set once every reference trajectory has ended."""
    state = decisions.state
    references = state.dataset.references
    if state.dataset.test is not None or not references or state.alive(m.Reference):
        return
    packs = tuple(references[key].pack for key in sorted(references, key=int))
    decisions.manifest("test", "test", Dataset(version=1, packs=packs).model_dump_json())


def audit_manifest(decisions: Decisions, stages: Iterable[int]) -> Ref | None:
    """Manifest of the labelled audit frames of these stages; None if there are none."""
    wanted = set(stages)
    labels = decisions.state.labels
    labelled = (labels.frames[key] for key in sorted(labels.audited))
    frames = [frame for frame in labelled if frame.stage in wanted]
    if not frames:
        return None
    body = _labelled_manifest(frames)
    return frozen_once(decisions, "audit", f"audit-{stable_id(body)[:8]}", body)


def pairs_manifest(decisions: Decisions) -> Ref | None:
    """Manifest of labelled explored frames that the newest committee has not trained on; they
    calibrate `auto` trust levels."""
    state = decisions.state
    given = stage_of(state).trust or state.spec.trust
    if not isinstance(given, AutoTrust):
        return None
    frames = [state.labels.frames[key] for key in sorted(state.dataset.fresh)]
    explored = [frame for frame in frames if not is_offered(frame.origin)]
    if not explored:
        return None
    body = _labelled_manifest(explored)
    return frozen_once(decisions, "pairs", f"pairs-{state.exploration.rounds}", body)


def points_manifest(decisions: Decisions) -> Ref | None:
    """Manifest of the labels that the properties are computed from, property by property; None if
    there are no properties or a label is missing."""
    submitted, frames = decisions.state.submitted, decisions.state.labels.frames
    assert submitted is not None
    points = [(str(n), frames[ref.key]) for n, refs in enumerate(submitted.points) for ref in refs]
    labels = tuple(frame.label for _, frame in points if frame.label)
    if not points or len(labels) < len(points):
        return None
    origins = tuple(number for number, _ in points)
    body = Dataset(version=1, labels=labels, origins=origins).model_dump_json()
    return frozen_once(decisions, "points", "points", body)


def _labelled_manifest(frames: Sequence[KnownFrame]) -> str:
    return Dataset(
        version=1,
        labels=tuple(frame.label for frame in frames if frame.label),
        origins=tuple(frame.origin for frame in frames),
        weights=tuple(frame.weight for frame in frames),
    ).model_dump_json()
