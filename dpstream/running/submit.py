"""Submits a campaign: stores its spec and inputs, and creates the event that starts it.

Everything stored here never changes afterwards. Submitting the same campaign again yields the same
event; different inputs under the same name are an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpstream.inputs.frames_as_given import runs
from dpstream.inputs.gather import Gathered
from dpstream.running.cross_check import force_tolerance, labels_to_check
from dpstream.services.coordinator.ledger.ledger import load_state
from dpstream.services.coordinator.ledger.submission import _submitted, stored_spec
from dpstream.services.coordinator.views.amendment import known_inputs, plan_to_amend
from dpstream.shared.atoms.dataset import labelled_batch
from dpstream.shared.atoms.frames import (
    Batch,
    Frame,
    FrameLabel,
    encode_labelled,
    frame_key,
)
from dpstream.shared.cross_check import CrossCheck, ImportedLabel
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import CampaignSubmitted
from dpstream.shared.ports import Store
from dpstream.shared.spec import Spec, Verification, expand_material
from dpstream.shared.spec.amendment import differences
from dpstream.shared.values import Dataset, FrameRef, Recipe, Ref, campaign_uri, stable_id

Packs = tuple[Ref, ...]
MOST_CHANGES = 5
"""Number of changed keys that an error lists."""


def submit(
    spec: Spec, gathered: Gathered, recipe: Recipe, store: Store, now: float
) -> CampaignSubmitted:
    """Store the campaign's inputs and return the event that starts it, at `now` (s, UTC).

    Submitting the same campaign again returns an identical event. Raises `SpecError` if the name is
    used by a campaign with another spec, other structures or another recipe.
    """
    spec_ref = _freeze_spec(expand_material(spec), store)
    event = _event(spec_ref, spec, gathered, recipe, store, now)
    key = campaign_uri(spec.name, "submitted.json")
    if store.create(key, event.model_dump_json().encode()):
        return event
    earlier = _submitted(key, store.get(key))
    _check_same(_as_amended(store, earlier, event), event, store)
    return earlier


def _as_amended(
    store: Store, earlier: CampaignSubmitted, event: CampaignSubmitted
) -> CampaignSubmitted:
    """What was submitted, with the systems that amendments have added since."""
    state = load_state(store, earlier.campaign)
    if plan_to_amend(state)[0] == 1:
        return earlier
    systems, _ = known_inputs(state)
    return earlier.model_copy(update={"systems": systems, "frames": event.frames})


def announced(event: CampaignSubmitted) -> CampaignSubmitted:
    """The event as it is published, without the lists of frames, which may be too long."""
    return event.model_copy(update={"frames": (), "systems": {}, "points": ()})


def _event(
    spec_ref: Ref, spec: Spec, gathered: Gathered, recipe: Recipe, store: Store, now: float
) -> CampaignSubmitted:
    inputs = Inputs(spec.name, store.create)
    inputs.attachments(gathered.attachments)
    return CampaignSubmitted(
        id=stable_id("campaign", spec.name),
        campaign=spec.name,
        time=now,
        spec=spec_ref,
        packs=inputs.packs(gathered.labelled),
        pack_frames=len(gathered.labelled),
        frames=inputs.frames(gathered.initial),
        systems={system: inputs.of_system(gathered, system) for system in gathered.systems},
        test=inputs.dataset(gathered.test) if gathered.test else None,
        imported=gathered.imported,
        atoms={
            system: max(len(frame.species) for frame in frames)
            for system, frames in gathered.systems.items()
        },
        recipe=recipe,
        points=tuple(inputs.frames(frames) for frames in gathered.points),
        cross_check=inputs.cross_check(spec, gathered) if gathered.compared else None,
        reference_points=spec.verification.reference_points,
        files={name: inputs.put(file.data, file.suffix) for name, file in gathered.files.items()},
    )


# ------------------------------------------------------------------------------ the spec


def _freeze_spec(spec: Spec, store: Store) -> Ref:
    key = campaign_uri(spec.name, "spec.json")
    body = _canonical_json(spec.model_dump(mode="json"))
    if not store.create(key, body):
        number, plan = _newest_plan(store, spec.name)
        earlier = store.get(key)
        if earlier != body or number > 1:
            _check_unchanged(spec, plan)
            body = earlier  # an older version of dpstream wrote fewer keys, or it was amended
    return Ref.to(key, body)


def _newest_plan(store: Store, campaign: str) -> tuple[int, Spec]:
    """Number and content of the plan that the campaign follows, or is about to. Raises
    CorruptLedger if it cannot be read."""
    submitted = stored_spec(store, campaign)
    if not store.exists(campaign_uri(campaign, "submitted.json")):
        return 1, submitted
    number, plan = plan_to_amend(load_state(store, campaign))
    return number, submitted if number == 1 else plan


def _canonical_json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _check_unchanged(spec: Spec, earlier: Spec) -> None:
    """Raises `SpecError` naming the keys that differ from the stored spec; defaults count."""
    changes = differences(earlier, as_before(spec, earlier))
    if changes:
        more = f" and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
        raise SpecError(
            f"campaign {spec.name} already exists with a different spec: changed: "
            f"{'; '.join(changes[:MOST_CHANGES])}{more}; change its plan with dpstream run SPEC "
            "--amend (in a deployment: dpstream amend NAME SPEC), or choose another name"
        )


def as_before(spec: Spec, earlier: Spec) -> Spec:
    """The spec, with values that earlier releases set where this one sets others: defaults, and how
    the jobs of DP-GEN's param file are drawn. A campaign keeps those it began with."""
    changes: dict[str, Any] = {}
    if spec.training.batch_atoms == "auto":
        before = {"batch_atoms": earlier.training.batch_atoms}
        changes["training"] = spec.training.model_copy(update=before)
    if (earlier.labels.bundle, spec.labels.bundle) == (5, None):
        changes["labels"] = spec.labels.model_copy(update={"bundle": 5})
    if spec.labels.version is None and earlier.labels.version is not None:
        labels = changes.get("labels", spec.labels)  # submitted from a machine without the code
        changes["labels"] = labels.model_copy(update={"version": earlier.labels.version})
    changes |= _reference_before(spec, earlier)
    once = spec.mode == "lockstep" and not any(stage.repeat for stage in spec.stages)
    imported = once and (earlier.selection.policy, spec.selection.policy) == ("random", "uniform")
    if spec.selection.policy is None or imported:
        policy = {"policy": earlier.selection.policy}
        changes["selection"] = spec.selection.model_copy(update=policy)
    return spec.model_copy(update=changes)


def _reference_before(spec: Spec, earlier: Spec) -> dict[str, Verification]:
    """The verification with the time step of reference_md that was the default."""
    now, before = spec.verification.reference_md, earlier.verification.reference_md
    if now is None or before is None or (before.timestep, now.timestep) != (0.0005, 0.001):
        return {}
    reference = now.model_copy(update={"timestep": before.timestep})
    return {"verification": spec.verification.model_copy(update={"reference_md": reference})}


# ------------------------------------------------------------------------------ the inputs


class Inputs:
    """Hands objects under `campaigns/<name>/inputs/`, named by a hash of their content, to
    `create`."""

    def __init__(self, campaign: str, create: Callable[[str, bytes], object]) -> None:
        self._campaign, self._create = campaign, create

    def of_system(self, gathered: Gathered, system: str) -> tuple[FrameRef, ...]:
        """References to the structures that trajectories of a system start from."""
        frames, lengths = gathered.systems[system], gathered.lengths
        return self.starts(frames, lengths[system]) if system in lengths else self.frames(frames)

    def frames(self, frames: Sequence[Frame]) -> tuple[FrameRef, ...]:
        """References to frames, in their order; one batch per composition."""
        keys = [frame_key(frame) for frame in frames]
        refs: dict[int, FrameRef] = {}
        for rows in Batch.grouped(frames):
            batch = self.put(Batch.of([frames[i] for i in rows]).dumps(), "npz")
            refs |= {i: FrameRef(batch=batch, index=n, key=keys[i]) for n, i in enumerate(rows)}
        return tuple(refs[i] for i in range(len(frames)))

    def starts(self, frames: Sequence[Frame], length: int) -> tuple[FrameRef, ...]:
        """A reference per trajectory of the engine `frames`: to its first frame, in a batch of all
        its frames."""
        return tuple(self.frames(run)[0] for run in runs(frames, length))

    def packs(self, labelled: Sequence[tuple[Frame, FrameLabel]]) -> tuple[Ref, ...]:
        """Labelled batches, one per composition."""
        frames = [frame for frame, _ in labelled]
        held = [(label.virial is not None, *label.weights) for _, label in labelled]
        groups = Batch.grouped(frames, held)
        batches = (labelled_batch([labelled[i] for i in rows]) for rows in groups)
        return tuple(self.put(batch.dumps(), "npz") for batch in batches)

    def dataset(self, labelled: Sequence[tuple[Frame, FrameLabel]]) -> Ref:
        """A dataset manifest of packs."""
        manifest = Dataset(version=0, packs=self.packs(labelled))
        return self.put(_canonical_json(manifest.model_dump(mode="json")), "json")

    def cross_check(self, spec: Spec, gathered: Gathered) -> CrossCheck:
        """The imported labels to compute again, each as an object of its own."""
        chosen = labels_to_check(gathered, spec)
        refs = self.frames([frame for frame, _ in chosen])
        labels = (self.put(encode_labelled(*each, {}), "json") for each in chosen)
        return CrossCheck(
            labels=tuple(
                ImportedLabel(frame=ref, label=label, formula=frame.formula)
                for ref, label, (frame, _) in zip(refs, labels, chosen, strict=True)
            ),
            forces=force_tolerance(gathered, spec),
        )

    def attachments(self, attachments: Mapping[str, bytes]) -> None:
        """Store the files that the labeling recipe refers to by digest."""
        for digest, data in attachments.items():
            self._create(campaign_uri(self._campaign, "inputs", digest), data)

    def put(self, data: bytes, suffix: str) -> Ref:
        digest = hashlib.sha256(data).hexdigest()[:16]
        key = campaign_uri(self._campaign, "inputs", f"{digest}.{suffix}")
        self._create(key, data)
        return Ref.to(key, data)


# ------------------------------------------------------------------------------ resubmission


def _check_same(earlier: CampaignSubmitted, event: CampaignSubmitted, store: Store) -> None:
    """Raises `SpecError` naming the first input that differs from the existing campaign. Frames are
    compared by content, in any order: earlier releases read `conf.10` before `conf.2`. What
    structures in another order lead to is not compared."""
    order_kept = _keys_by_system(earlier) == _keys_by_system(event)
    for key, before, after in (
        ("the structures of systems", _sorted_keys(earlier), _sorted_keys(event)),
        *((name, *map(of, (earlier, event))) for name, of in DERIVED if order_kept),
        ("initial.data", *_labels(earlier.packs, event.packs, store)),
        (
            "verification.data",
            *_labels(_test_packs(earlier, store), _test_packs(event, store), store),
        ),
        ("the training files", earlier.files, event.files),
        ("the labeling recipe", _recipe(earlier), _recipe(event)),
    ):
        if before != after:
            shown = f" ({before} → {after})" if isinstance(before, str) else ""
            raise SpecError(
                f"campaign {event.campaign} already exists with different inputs: {key} "
                f"changed{shown}; choose another name"
            )


def _labels(earlier: Packs, later: Packs, store: Store) -> tuple[Any, Any]:
    """What to compare of two lists of packs: their digests or, if these differ, frames with their
    energies in any order."""
    if earlier == later:
        return earlier, later
    return _sorted_labels(earlier, store), _sorted_labels(later, store)


def _sorted_labels(packs: Packs, store: Store) -> list[tuple[str, float]]:
    batches = [Batch.loads(store.get(pack.uri)) for pack in packs]
    return sorted(
        (frame_key(frame), float(energy))
        for batch in batches
        for frame, energy in zip(batch, batch.arrays["energy"], strict=True)
    )


def _test_packs(event: CampaignSubmitted, store: Store) -> Packs:
    if event.test is None:
        return ()
    return Dataset.model_validate_json(store.get(event.test.uri)).packs


def _sorted_keys(event: CampaignSubmitted) -> dict[str, list[str]]:
    return {name: sorted(keys) for name, keys in _keys_by_system(event).items()}


def _keys(frames: Sequence[FrameRef]) -> list[str]:
    return [frame.key for frame in frames]


def _keys_by_system(event: CampaignSubmitted) -> dict[str, list[str]]:
    return {name: _keys(frames) for name, frames in event.systems.items()}


def _keys_of_points(event: CampaignSubmitted) -> list[list[str]]:
    return [_keys(frames) for frames in event.points]


def _recipe(event: CampaignSubmitted) -> str:
    recipe = event.recipe
    return f"{recipe.program} {recipe.digest}"


DERIVED: tuple[tuple[str, Callable[[CampaignSubmitted], Any]], ...] = (
    ("the initial frames", lambda event: _keys(event.frames)),
    ("the structures of properties", _keys_of_points),
)
"""Inputs that depend on the order of the structures."""
