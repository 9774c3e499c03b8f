"""What the labeler does with a command: labels of given frames, and held-out reference frames.

A label is looked up before it is computed and shared afterwards by all campaigns in the store. A
frame that cannot be labelled is a rejection with a reason, never an exception.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from services.labeler.acceptance import (
    Broken,
    Limits,
    Outcome,
    check_after,
    check_before,
    largest_force,
)
from services.labeler.attachments import Attached, attached
from services.labeler.codes import CODES
from services.labeler.codes.ase import SHIPPED
from services.labeler.codes.base import Code, FileCode, Localized
from services.labeler.dynamics import Plan
from services.labeler.engine import frame_facts, frame_from_facts
from services.labeler.recipes import code_of, make_recipe, recipe_for
from services.labeler.runner import run_files
from shared.context import Context, Handler
from shared.dimers import dimer_keys
from shared.engine import Engine
from shared.errors import EngineCrashed, EngineError, NotFound, Permanent, SpecError
from shared.frames import Batch, Frame, canonical, decode_labelled, encode_labelled, frame_key
from shared.frames import Label as FrameLabel
from shared.messages import Command, Label, LabelsDone, Reference, ReferenceDone
from shared.spec import Labels, Spec
from shared.values import Accepted, FrameRef, Recipe, Ref, Rejected, label_uri

MAX_DETAIL = 300
"""Characters of a rejection's detail: a bundle's rejections fit into one message."""
PREPARE_SECONDS = 300.0
"""For a fresh child to import its libraries."""
PROGRAMS = frozenset({"command", "profile", "label", "directory"})
"""Arguments by which ASE's calculators are told what to run, and where to write."""
TRIES = 2
"""Of one frame, each in a fresh child, before it is rejected as crashed."""


class Bench:
    """The labeler's warm engine, and what this worker allows."""

    def __init__(
        self,
        scratch: Path,
        threads: int = 1,
        allowed_calculators: frozenset[str] = SHIPPED,
        allowed_codes: Collection[str] = CODES,
        allow_programs: bool = False,
    ) -> None:
        """`scratch`: a private folder; `threads` of one label; `allowed_calculators`: ASE
        calculators by dotted name that campaigns may ask for; `allowed_codes`: labeling codes;
        `allow_programs`: whether a campaign may name a program in a calculator's arguments."""
        self.engine = Engine("services.labeler.engine", scratch.resolve() / "labeler", threads)
        self.allowed_calculators = allowed_calculators
        self.allowed_codes = allowed_codes
        self.allow_programs = allow_programs

    @classmethod
    def at_home(cls, scratch: Path, labels: Labels) -> Bench:
        """For a user's own campaign on the user's own machine: what the spec names is allowed."""
        named = {str(labels.settings["calculator"])} if "calculator" in labels.settings else set()
        return cls(scratch, allowed_calculators=SHIPPED | named, allow_programs=True)

    def refusal(self, recipe: Recipe) -> str | None:
        """Why this worker must not compute by `recipe`, if so."""
        if recipe.code not in self.allowed_codes:
            return f"{recipe.code} is not among this worker's allowed codes"
        if recipe.code != "ase":
            return None
        calculator = recipe.settings["calculator"]
        if calculator not in self.allowed_calculators:
            return f"{calculator} is not among this worker's allowed calculators"
        programs = PROGRAMS.intersection(recipe.settings["arguments"])
        if programs and not self.allow_programs:
            return f"a campaign may not name a program: arguments.{min(programs)}"
        return None

    def start(self) -> None:
        """Start the engine child ahead of the first task."""
        self.engine.start()

    def close(self) -> None:
        self.engine.kill()


@dataclass
class Desk:
    """One task's frame-by-frame work: everything that stays the same between frames."""

    bench: Bench
    context: Context
    labels: Labels
    recipe: Recipe
    spec: Spec | None = None
    """The campaign's; None outside any."""
    given: Mapping[str, bytes] | None = None
    """The recipe's files by digest, where no campaign brought them."""
    _batches: dict[str, Batch] = field(default_factory=dict)

    @cached_property
    def code(self) -> Code:
        return code_of(self.labels)

    def limits(self, key: str) -> Limits:
        """The caps that the frame of this key has to keep."""
        dimers = None if self.spec is None else self.spec.initial.dimers
        if self.spec is not None and dimers is not None and key in dimer_keys(self.spec):
            return Limits.of_dimers(dimers, self.labels)
        return Limits.of(self.labels)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The files that came with the campaign, by name."""
        return {each.file: self._file(each) for each in attached(self.recipe.settings)}

    def _file(self, each: Attached) -> bytes:
        if self.given is not None:
            return self.given[each.sha256]
        return self.context.fetch(each.ref(self.context.command.campaign))

    def label(self, ref: FrameRef) -> Accepted | Rejected:
        """The verdict on one frame."""
        frame = self.frame(ref)
        return rejected(ref.key, frame) if isinstance(frame, Broken) else self.judge(ref.key, frame)

    def judge(self, key: str, frame: Frame) -> Accepted | Rejected:
        """The verdict on a canonical frame with this key."""
        self.context.check()
        try:
            recipe = recipe_for(self.recipe, frame)
        except ValueError as error:
            return rejected(key, Broken("electron-temperature", str(error)))
        broken = check_before(frame, recipe, self.code, self.limits(key))
        if broken is not None:
            return rejected(key, broken)
        return self._known(key, recipe) or self._new(key, frame, recipe)

    def frame(self, ref: FrameRef) -> Frame | Broken:
        """The canonical frame behind a reference, or what is wrong with it."""
        if ref.batch.sha256 not in self._batches:
            self._batches[ref.batch.sha256] = Batch.loads(self.context.fetch(ref.batch))
        batch = self._batches[ref.batch.sha256]
        if ref.index >= len(batch):
            return Broken("frame-key", f"row {ref.index} of a batch of {len(batch)}")
        raw = batch[ref.index]
        if not np.isfinite(raw.positions).all():
            return Broken("finite-positions", "a coordinate is not a finite number")
        try:
            frame = canonical(raw).frame
        except (ValueError, np.linalg.LinAlgError) as error:
            return Broken("cell", str(error))
        key = frame_key(frame)
        return frame if key == ref.key else Broken("frame-key", f"the frame's key is {key}")

    def _known(self, key: str, recipe: Recipe) -> Accepted | Rejected | None:
        """The verdict by this campaign's caps on a label computed before, if there is one."""
        uri = label_uri(recipe.digest, key)
        try:
            data = self.context.insist(lambda: self.context.store.get(uri))
        except NotFound:
            return None
        return self._reused(key, Ref.to(uri, data), data)

    def _reused(self, key: str, ref: Ref, data: bytes, seconds: float = 0.0) -> Accepted | Rejected:
        """The verdict on a label that was stored by another task; `seconds` were spent on it here
        in vain."""
        frame, label, _ = decode_labelled(data)
        broken = check_after(frame, Outcome.of_label(frame, label), self.limits(key))
        if broken is not None:
            return rejected(key, broken, seconds)
        return accepted(key, ref, label, seconds, reused=True)

    def _new(self, key: str, frame: Frame, recipe: Recipe) -> Accepted | Rejected:
        outcome = self._compute(key, frame, recipe)
        broken = check_after(frame, outcome, self.limits(key))
        if broken is not None:
            return rejected(key, broken, outcome.seconds)
        provenance = self._provenance(key, frame, recipe, outcome)
        label = outcome.label()
        data = encode_labelled(frame, label, provenance)
        uri = label_uri(recipe.digest, key)
        store = self.context.store
        first = self.context.insist(lambda: store.create(uri, data))
        standing = data if first else self.context.insist(lambda: store.get(uri))
        ref = Ref.to(uri, standing)
        if standing != data:
            return self._reused(key, ref, standing, outcome.seconds)
        # Also where the create went through and its answer was lost.
        return accepted(key, ref, label, outcome.seconds, reused=False)

    def _compute(self, key: str, frame: Frame, recipe: Recipe) -> Outcome:
        """The facts of a single point; a crash or time-out is tried again in a fresh child."""
        reason, started = "", time.monotonic()
        for attempt in range(TRIES):
            try:
                return self._point(f"{key}-{attempt}", frame, recipe)
            except EngineCrashed as crash:
                reason = str(crash)
        seconds = time.monotonic() - started
        self._engine_is_sound()
        return Outcome(fault="crashed", messages=(reason,), seconds=seconds)

    def _engine_is_sound(self) -> None:
        """Raise EngineCrashed where the child dies without any frame: the worker is at fault then,
        and no frame may be blamed."""
        if not isinstance(self.code, FileCode):
            self.call("prepare", {"recipe": self.for_engine(self.recipe)}, PREPARE_SECONDS)

    def for_engine(self, recipe: Recipe) -> dict[str, Any]:
        """A recipe as the engine child is given it."""
        local = self.code.localized(recipe) if isinstance(self.code, Localized) else recipe
        return local.model_dump()

    def _point(self, name: str, frame: Frame, recipe: Recipe) -> Outcome:
        if isinstance(self.code, FileCode):
            return run_files(
                self.code,
                recipe,
                frame,
                self.context.scratch / name,
                files=self.files,
                cores=self.bench.engine.threads,
                seconds=self.labels.max_seconds,
                tick=self.context.check,
            )
        arguments = {"recipe": self.for_engine(recipe), "frames": [frame_facts(frame)]}
        return Outcome.of(self.call("single_points", arguments, self.labels.max_seconds)[0])

    def call(self, operation: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """The engine's answer; an error there is not one frame's but the recipe's: Permanent."""
        try:
            return self.bench.engine.call(
                operation, arguments, tick=self.context.check, seconds=seconds
            )
        except EngineError as error:
            raise Permanent(f"{self.recipe.code}: {error.kind}: {error}") from error

    def _provenance(
        self, key: str, frame: Frame, recipe: Recipe, outcome: Outcome
    ) -> dict[str, Any]:
        settings = recipe.settings
        return {
            "code": recipe.code,
            "version": recipe.version,
            "program": outcome.program,
            "charge": recipe.charge,
            "multiplicity": recipe.multiplicity,
            "method": self.code.method(settings),
            "semi_empirical": self.code.semi_empirical(settings),
            "recipe": recipe.digest,
            "frame": key,
            "seconds": outcome.seconds,
            "warnings": self.code.warnings(frame),
            "worker": self.context.worker,
            "campaign": self.context.command.campaign,
        }


def accepted(key: str, ref: Ref, label: FrameLabel, seconds: float, *, reused: bool) -> Accepted:
    return Accepted(
        key=key,
        label=ref,
        reused=reused,
        max_force=largest_force(label.forces),
        seconds=seconds,
        energy=label.energy,
    )


def rejected(key: str, broken: Broken, seconds: float = 0.0) -> Rejected:
    return Rejected(key=key, rule=broken.rule, detail=broken.detail[:MAX_DETAIL], seconds=seconds)


def _desk(bench: Bench, command: Label | Reference, context: Context) -> Desk:
    """Raises Permanent where this worker computes otherwise than the campaign or must not compute
    by its recipe."""
    spec = context.spec()
    try:
        recipe = make_recipe(spec.labels)
    except SpecError as error:
        raise Permanent(f"this worker cannot label for the campaign: {error}") from error
    if recipe.digest != command.recipe:
        raise Permanent(
            f"this worker's recipe is {recipe.digest} ({recipe.code} {recipe.version}), the "
            f"campaign's is {command.recipe}: another version of the code or of its settings"
        )
    refusal = bench.refusal(recipe)
    if refusal is not None:
        raise Permanent(refusal)
    return Desk(bench, context, spec.labels, recipe, spec)


def label(bench: Bench, command: Label, context: Context) -> LabelsDone:
    """Label every frame of the bundle or say why not. Raises Permanent when this worker's code
    is not the campaign's. What an earlier attempt has labelled is found, not computed again."""
    desk = _desk(bench, command, context)
    verdicts: list[Accepted | Rejected] = []
    for number, ref in enumerate(command.frames):
        context.progress(f"frame {number + 1} of {len(command.frames)}")
        verdicts.append(desk.label(ref))
    return LabelsDone(
        **context.envelope(),
        accepted=tuple(v for v in verdicts if isinstance(v, Accepted)),
        rejected=tuple(v for v in verdicts if isinstance(v, Rejected)),
    )


def reference(bench: Bench, command: Reference, context: Context) -> ReferenceDone:
    """One trajectory of held-out frames: a labelled batch of canonical frames with `energy`,
    `forces` and, when periodic, `virial`. Raises Permanent when the dynamics breaks down or the
    code is a program."""
    desk = _desk(bench, command, context)
    if isinstance(desk.code, FileCode):
        raise Permanent(f"{desk.code.name} cannot drive dynamics: it is not a Python library")
    start = desk.frame(command.structure)
    if isinstance(start, Broken):
        raise Permanent(f"the starting structure: {start.rule}: {start.detail}")
    arguments = {
        "recipe": desk.for_engine(recipe_for(desk.recipe, start)),
        "frame": frame_facts(start),
        "plan": asdict(_plan(command, context)),
    }
    kept = desk.call("reference_md", arguments, command.max_seconds)
    batch = _pack(list(_sound(desk, kept, start)))
    pack = context.put(f"reference-{command.trajectory}.npz", batch.dumps())
    return ReferenceDone(
        **context.envelope(), trajectory=command.trajectory, pack=pack, frames=len(batch)
    )


def _plan(command: Reference, context: Context) -> Plan:
    wanted = context.spec().verification.reference_md
    if wanted is None:
        raise Permanent("the spec has no verification.reference_md")
    return Plan(
        seed=command.seed,
        temperature=wanted.temperature,
        timestep=wanted.timestep,
        equilibrate=wanted.equilibrate,
        spacing=wanted.spacing,
        frames=wanted.frames,
    )


def _sound(desk: Desk, kept: list[dict[str, Any]], start: Frame) -> Iterator[tuple[Frame, Outcome]]:
    """Every kept frame, with the parameters of `start`, passes the acceptance contract, or the
    trajectory is no reference."""
    for number, item in enumerate(kept):
        frame = frame_from_facts(item["frame"]).given(start.parameters)
        outcome = Outcome.of(item["outcome"])
        recipe, limits = recipe_for(desk.recipe, frame), Limits.of(desk.labels)
        broken = check_before(frame, recipe, desk.code, limits) or check_after(
            frame, outcome, limits
        )
        if broken is not None:
            raise Permanent(f"reference frame {number}: {broken.rule}: {broken.detail}")
        yield frame, outcome


def _pack(kept: list[tuple[Frame, Outcome]]) -> Batch:
    labels = [outcome.label() for _, outcome in kept]
    arrays: dict[str, Any] = {
        "energy": np.array([label.energy for label in labels]),
        "forces": np.stack([label.forces for label in labels]),
    }
    virials = [label.virial for label in labels if label.virial is not None]
    if virials:
        arrays["virial"] = np.stack(virials)
    return Batch.of([frame for frame, _ in kept], **arrays)


HANDLERS: dict[type[Command], Handler] = {Label: label, Reference: reference}
