"""Labels the frames of one task.

For each frame: load it, check the rules before computing, look for an existing label in the store,
otherwise compute it (a program in its own folder, or a library in the child process), check the
rules after computing, and store the label with its provenance.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from dpstream.services.labeler.acceptance import (
    AcceptanceLimits,
    BrokenRule,
    Comparison,
    Outcome,
    check_after,
    check_before,
    largest_force,
)
from dpstream.services.labeler.attachments import Attached, attached
from dpstream.services.labeler.child import frame_facts
from dpstream.services.labeler.codes.base import (
    Code,
    FileCode,
    Localized,
    Restartable,
    StatesVersion,
)
from dpstream.services.labeler.codes.outputs import limits_for
from dpstream.services.labeler.known_labels import KnownLabel, KnownLabels
from dpstream.services.labeler.recipes import code_of, recipe_for
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.labeler.restarts import (
    MAX_ARCHIVE,
    PROGRAM_SHARE,
    STORE_SHARE,
    Restart,
    accepted_by,
    collected,
    pack,
    unpack,
)
from dpstream.services.labeler.runner import run_files
from dpstream.shared.activity import Activity
from dpstream.shared.atoms.frames import (
    Batch,
    Frame,
    FrameLabel,
    canonical,
    encode_labelled,
    frame_key,
)
from dpstream.shared.errors import (
    DigestMismatch,
    EngineCrashed,
    EngineError,
    EngineKilled,
    NotFound,
    Permanent,
    Stopped,
)
from dpstream.shared.logs import logger
from dpstream.shared.messages import Label
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.parser import Unreadable
from dpstream.shared.spec import LabelSettings, Spec
from dpstream.shared.spec.dimers import dimer_keys
from dpstream.shared.spec.errors import first_of
from dpstream.shared.values import (
    Accepted,
    FrameRef,
    Recipe,
    Ref,
    Rejected,
    campaign_uri,
)

log = logger()

MAX_DETAIL = 300
"""Characters of a rejection's detail: the rejections of a command must fit in one message."""


PREPARE_SECONDS = 300.0
"""Time limit for a new child process to import its libraries."""


TRIES = 2
"""Attempts per frame, each in a new child process, before it is rejected as crashed."""


@dataclass
class FrameLabeler:
    """Labels frames by one recipe; holds everything that is common to the frames of a task."""

    resources: LabelerResources
    context: Context
    labels: LabelSettings
    recipe: Recipe
    spec: Spec | None = None
    """The campaign's spec; None outside campaigns."""
    given_files: Mapping[str, bytes] | None = None
    """The recipe's files by digest; None: fetched from the campaign's inputs."""
    _batches: dict[str, Batch] = field(default_factory=dict)

    @cached_property
    def code(self) -> Code:
        return code_of(self.labels)

    @cached_property
    def installed(self) -> str | None:
        """The exact version here; None if only outputs name it."""
        return (
            None
            if isinstance(self.code, StatesVersion)
            else self.code.version(self.recipe.settings)
        )

    @cached_property
    def known_labels(self) -> KnownLabels:
        resources, command = self.resources, self.context.command
        distrusted = command.distrusted if isinstance(command, Label) else ()
        return KnownLabels(
            self.context, resources.signing_key, resources.reuse_unsigned, distrusted
        )

    def limits(self, key: str) -> AcceptanceLimits:
        """The acceptance limits of the frame with this key."""
        dimers = None if self.spec is None else self.spec.initial.dimers
        if self.spec is not None and dimers is not None and key in dimer_keys(self.spec):
            return AcceptanceLimits.of_dimers(dimers, self.labels)
        return AcceptanceLimits.of(self.labels, self.spec)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The recipe's attached files by name. Raises Permanent if a name leads elsewhere."""
        try:
            return {each.file: self._file(each) for each in attached(self.recipe.settings)}
        except ValidationError as error:
            raise Permanent(f"attached files: {first_of(error)}") from error

    def _file(self, each: Attached) -> bytes:
        if self.given_files is not None:
            return self.given_files[each.sha256]
        return self.context.fetch(each.ref(self.context.command.campaign))

    def label(self, ref: FrameRef) -> Accepted | Rejected:
        """Label one frame or reject it."""
        frame = self.frame(ref)
        if isinstance(frame, BrokenRule):
            return rejected(ref.key, frame)
        return self.judge(ref.key, frame)

    def judge(self, key: str, frame: Frame) -> Accepted | Rejected:
        """Label a canonical frame with this key or reject it."""
        self.context.check()
        recipe = self._own_recipe(key, frame)
        if isinstance(recipe, BrokenRule):
            return rejected(key, recipe)
        return self._existing(key, recipe) or self._new(key, frame, recipe)

    def _own_recipe(self, key: str, frame: Frame) -> Recipe | BrokenRule:
        """The recipe by which a frame is computed, or the rule because of which it is not."""
        try:
            recipe = recipe_for(self.recipe, frame)
        except ValueError as error:
            return BrokenRule("electron-temperature", str(error))
        return check_before(frame, recipe, self.code, self.limits(key)) or recipe

    def frame(self, ref: FrameRef) -> Frame | BrokenRule:
        """The canonical frame behind a reference, or the rule that it violates."""
        if ref.batch.sha256 not in self._batches:
            self._batches[ref.batch.sha256] = Batch.loads(self.context.fetch(ref.batch))
        batch = self._batches[ref.batch.sha256]
        if ref.index >= len(batch):
            return BrokenRule("frame-key", f"row {ref.index} of a batch of {len(batch)}")
        raw = batch[ref.index]
        if not np.isfinite(raw.positions).all():
            return BrokenRule("finite-positions", "a coordinate is not a finite number")
        try:
            frame = canonical(raw).frame
        except (ValueError, np.linalg.LinAlgError) as error:
            return BrokenRule("cell", str(error))
        key = frame_key(frame)
        return frame if key == ref.key else BrokenRule("frame-key", f"the frame's key is {key}")

    def _existing(self, key: str, recipe: Recipe) -> Accepted | Rejected | None:
        """The existing label of the frame, checked against this campaign's limits; None without
        one."""
        known = self.known_labels.find(recipe.digest, key)
        return None if known is None else self._reused(key, known)

    def _reused(self, key: str, known: KnownLabel, seconds: float = 0.0) -> Accepted | Rejected:
        """A label stored by another task, accepted or rejected; `seconds`: time spent here on
        computing the same label."""
        outcome = Outcome.of_label(known.frame, known.label)
        broken = check_after(known.frame, outcome, self.limits(key))
        if broken is not None:
            return rejected(key, broken, seconds)
        return accepted(key, known.ref, known.label, seconds, reused=True, writer=known.writer)

    def _new(self, key: str, frame: Frame, recipe: Recipe) -> Accepted | Rejected:
        outcome = self._compute(key, frame, recipe)
        broken = check_after(frame, outcome, self.limits(key))
        if broken is not None:
            return rejected(key, broken, outcome.seconds)
        provenance = self._provenance(key, frame, recipe, outcome)
        label = outcome.label()
        data = self.known_labels.signed(encode_labelled(frame, label, provenance))
        known = self.known_labels.keep(recipe.digest, key, data)
        if known.ref != Ref.to(known.ref.uri, data):
            return self._reused(key, known, outcome.seconds)
        # Also if the create succeeded and its reply was lost.
        return accepted(key, known.ref, label, outcome.seconds, reused=False)

    def compare(self, ref: FrameRef, known: FrameLabel) -> Comparison | BrokenRule:
        """How a reused or imported label differs from a new one, or why there is no new one."""
        frame = self.frame(ref)
        if isinstance(frame, BrokenRule):
            return frame
        recipe = self._own_recipe(ref.key, frame)
        if isinstance(recipe, BrokenRule):
            return recipe
        outcome = self._compute(ref.key, frame, recipe)
        broken = check_after(frame, outcome, self.limits(ref.key))
        return broken or Comparison.of(known, outcome.label(), self.code)

    def _compute(self, key: str, frame: Frame, recipe: Recipe) -> Outcome:
        """The outcome of a single point; after a crash or timeout, retried in a new child process.
        Raises EngineKilled if the engine was killed and another machine can still try."""
        continued = self._continued(key, frame, recipe)
        if continued is not None:
            return continued
        started, last = time.monotonic(), EngineCrashed("")
        another = self._may_move(key)
        for attempt in range(TRIES):
            try:
                return self._point(key, f"{key}-{attempt}", frame, recipe)
            except EngineCrashed as crash:
                last = crash
            if another and isinstance(last, EngineKilled) and isinstance(self.code, FileCode):
                break  # a program may have run for hours
        if another and isinstance(last, EngineKilled):
            self.context.retry(lambda: self.context.store.create(self._killed_uri(key), b"{}"))
            raise last
        seconds = time.monotonic() - started
        self._check_engine()
        fault = "out-of-memory" if isinstance(last, EngineKilled) else "crashed"
        return Outcome(fault=fault, messages=(str(last),), seconds=seconds)

    def _continued(self, key: str, frame: Frame, recipe: Recipe) -> Outcome | None:
        """The outcome of a run from the restart files of an earlier attempt. None without such
        files, and for anything but a valid label: a frame is rejected only by a run from the
        beginning."""
        restart = self._restart
        if restart is None or (restart.frame, restart.recipe) != (key, recipe.digest):
            return None
        try:
            outcome = self._point(key, f"{key}-continued", frame, recipe, restart.files)
        except EngineCrashed as crash:
            log.warning("restart files were of no use", frame=key, reason=str(crash))
            return None
        broken = check_after(frame, outcome, self.limits(key))
        log.info("continued from restart files", frame=key, broken=broken)
        return outcome if broken is None else None

    @cached_property
    def _restart(self) -> Restart | None:
        """The restart files that an earlier attempt left; None without usable ones."""
        command, code = self.context.command, self.code
        ref = command.resume if isinstance(command, Label) else None
        if ref is None or ref.size > MAX_ARCHIVE or not isinstance(code, Restartable):
            return None
        try:
            restart = unpack(self.context.fetch(ref))
        except (NotFound, DigestMismatch, ValueError) as error:
            log.warning("restart files ignored", object=ref.uri, reason=str(error))
            return None
        return restart if accepted_by(code, restart) else None

    def _may_move(self, key: str) -> bool:
        """Whether another machine may try the frame: the task has a further attempt, and this is
        the first machine whose engine is killed by it."""
        if self.spec is None or self.spec.max_attempts < 2:
            return False
        store, uri = self.context.store, self._killed_uri(key)
        return not self.context.retry(lambda: store.exists(uri))

    def _killed_uri(self, key: str) -> str:
        """Object that says that a machine ran out of memory with this frame."""
        command = self.context.command
        return campaign_uri(command.campaign, "results", command.task, "killed", key)

    def _check_engine(self) -> None:
        """Raise EngineCrashed if the child process dies even without a frame: then the worker, not
        the frame, is the cause."""
        if not isinstance(self.code, FileCode):
            self.call("prepare", {"recipe": self.for_engine(self.recipe)}, PREPARE_SECONDS)

    def for_engine(self, recipe: Recipe) -> dict[str, Any]:
        """A recipe as passed to the child process, with this worker's file paths."""
        local = self.code.localized(recipe) if isinstance(self.code, Localized) else recipe
        return local.model_dump()

    def _point(
        self,
        key: str,
        name: str,
        frame: Frame,
        recipe: Recipe,
        restart: Mapping[str, bytes] | None = None,
    ) -> Outcome:
        """The outcome of a single point; `name`: of its folder."""
        if isinstance(self.code, FileCode):
            folder = self.context.scratch / name
            try:
                return run_files(
                    self.code,
                    recipe,
                    frame,
                    folder,
                    files=self.files,
                    cores=self.resources.engine.threads,
                    seconds=self.labels.max_seconds,
                    tick=self.context.check,
                    read=self._read,
                    progressed=self.context.progressed,
                    restart=restart,
                    patience=self._patience,
                )
            except Stopped:
                self._keep_restart(key, recipe, folder)
                raise
        arguments = {"recipe": self.for_engine(recipe), "frames": [frame_facts(frame)]}
        return Outcome.of(self.call("single_points", arguments, self.labels.max_seconds)[0])

    def _read(self, code: FileCode, folder: Path, frame: Frame, exit_status: int) -> Outcome:
        """The outcome of a program's run. Output that cannot be read rejects the frame. Raises
        ParserFailed."""
        arguments = {
            "code": code.name,
            "folder": str(folder.resolve()),
            "frame": frame_facts(frame),
            "exit_status": exit_status,
        }
        limits = limits_for(len(frame.species))
        try:
            call = self.resources.parser.call
            return Outcome.of(call("read_outputs", arguments, limits, self.context.check))
        except (Unreadable, ValueError) as error:
            return Outcome(exit_status, fault="unreadable-output", messages=(str(error),))

    def _patience(self) -> float:
        """Seconds that an interrupted program has to write its restart files."""
        return PROGRAM_SHARE * self.resources.grace if self._is_continued_later else 0.0

    @property
    def _is_continued_later(self) -> bool:
        """Whether another attempt can continue the calculation that is interrupted now."""
        in_campaign = self.spec is not None and not self.spec.starts_over
        return in_campaign and self.context.is_preempted

    def _keep_restart(self, key: str, recipe: Recipe, folder: Path) -> None:
        """Store the restart files of an interrupted calculation, if there are usable ones."""
        if not isinstance(self.code, Restartable) or not self._is_continued_later:
            return
        try:
            files = collected(self.code, folder)
            if files:
                data = pack(Restart(key, recipe.digest, files))
                seconds = STORE_SHARE * self.resources.grace
                self.context.put_restart(f"restart-{key}.zip", data, seconds)
        except (OSError, MemoryError) as error:  # the task has to be released all the same
            log.warning("restart files not kept", frame=key, reason=str(error))

    def call(self, operation: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """Call the child process. Raises Permanent for its errors, which concern the recipe."""
        engine = self.resources.engine
        tick = Activity(lambda: engine.pid).watched(self.context.check, self.context.progressed)
        try:
            return engine.call(operation, arguments, tick=tick, seconds=seconds)
        except EngineError as error:
            raise Permanent(f"{self.recipe.code}: {error.kind}: {error}") from error

    def _provenance(
        self, key: str, frame: Frame, recipe: Recipe, outcome: Outcome
    ) -> dict[str, Any]:
        settings = recipe.settings
        return {
            "code": recipe.code,
            "version": recipe.version,
            "program": outcome.program or self.installed,
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


def accepted(
    key: str,
    ref: Ref,
    label: FrameLabel,
    seconds: float,
    *,
    reused: bool,
    writer: str | None = None,
) -> Accepted:
    return Accepted(
        key=key,
        label=ref,
        reused=reused,
        max_force=largest_force(label.forces),
        seconds=seconds,
        energy=label.energy,
        writer=writer,
    )


def rejected(key: str, broken: BrokenRule, seconds: float = 0.0) -> Rejected:
    return Rejected(key=key, rule=broken.rule, detail=broken.detail[:MAX_DETAIL], seconds=seconds)
