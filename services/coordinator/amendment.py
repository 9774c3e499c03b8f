"""What an amendment makes of a campaign: the next plan in force, what ends, what is judged again.

Everything follows from the state and the amended spec, so that the command line shows before
sending what the coordinator decides afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.state import StageState, State, Task
from dpstream.shared import messages as m
from dpstream.shared.spec import Spec, Stage, expand_material
from dpstream.shared.spec.amendment import (
    INSTEAD,
    changed_keys,
    changes_below,
    differences,
    explores_otherwise,
    flat,
    is_at_any_time,
    is_below,
    is_looser,
    stricter_limit,
    unchangeable,
    with_any_time,
)
from dpstream.shared.spec.errors import explain

RULES = (
    *("trust", "md", "selection", "labels", "audit", "convergence"),
    *("budget", "training", "streaming"),
)
"""Sections that a stage which found no end may owe it to."""
ARCHITECTURE = ("training.input", "training.member_input", "training.members")
"""What no warm start survives."""


def plan_in_force(state: State) -> Spec:
    """The plan in force, with its stages in the order that the user gave them."""
    stages = tuple(state.spec.stages[index] for index in state.planned)
    return state.spec.model_copy(update={"stages": stages})


def newest_plan(state: State) -> Spec:
    """The plan that the next amendment changes."""
    asked = state.plan.asked
    if not asked:
        return plan_in_force(state)
    return _overtaken(state, asked[-1], state.plan.newest - 1)


def _overtaken(state: State, event: m.CampaignAmended, behind: int) -> Spec:
    """The plan of an amendment that comes into force behind plan number `behind`. If that is not
    the plan that it followed, a later one that did not have to wait has overtaken it."""
    spec = _spec_of(event)
    return with_any_time(spec, plan_in_force(state)) if event.follows < behind else spec


def objection(state: State, event: m.CampaignAmended) -> str | None:
    """Why an amendment is refused, or None. `state`: before the event."""
    if state.submitted is None:
        return "the campaign has not begun"
    if state.finished is not None and state.finished.verdict == "cancelled":
        return f"the campaign was cancelled for good; {INSTEAD} {state.spec.name}"
    if event.follows != state.plan.newest:
        return _stale(state, event)
    try:
        after = _spec_of(event)
    except ValidationError as error:
        return f"the spec is not valid: {explain(error, Spec)}"
    before = newest_plan(state)
    problem = unchangeable(before, after)
    if problem is None:
        problem = _wrong_inputs(event, after.systems.keys() - _systems(state))
    if problem is None and not differences(before, after) and not mendable(state):
        problem = "nothing differs from the plan in force"
    return problem


def mendable(state: State) -> bool:
    """Whether a campaign ended by a fault of the set-up, not of its plan: the final model could not
    be verified. The same plan once more has it verified again."""
    return state.finished is not None and state.final.failure is not None


def _spec_of(event: m.CampaignAmended) -> Spec:
    return expand_material(Spec.model_validate(event.spec))


def _systems(state: State) -> set[str]:
    """Systems whose structures are known, or come with an amendment that waits."""
    assert state.submitted is not None
    return {*state.submitted.systems, *(name for each in state.plan.asked for name in each.systems)}


def _wrong_inputs(event: m.CampaignAmended, new: Set[str]) -> str | None:
    """What is wrong with the structures that come with an amendment, which adds the systems
    `new`."""
    missing = sorted(name for name in new if not event.systems.get(name))
    if missing:
        return f"systems.{missing[0]}: the amendment lacks its structures"
    known = sorted(event.systems.keys() - new)
    if known:
        return f"systems.{known[0]}: the amendment has structures of a system that it does not add"
    if event.atoms.keys() != new or any(count < 1 for count in event.atoms.values()):
        return (
            f"atoms: the amendment must state the atoms of {', '.join(sorted(new)) or 'no system'}"
        )
    if event.frames and not new:
        return "frames: the amendment has frames to be labelled, but adds no system"
    return None


def _stale(state: State, event: m.CampaignAmended) -> str:
    asked, records = state.plan.asked, state.plan.records
    newest = state.plan.newest
    author = asked[-1].author if asked else records[-1].author if records else ""
    by = f", by {author}," if author else ""
    how = "waits for the end of the round" if asked else "is in force"
    return (
        f"it follows plan {event.follows}, but plan {newest}{by} {how}; look at it with dpstream "
        "status, and amend that one"
    )


def is_between_rounds(state: State) -> bool:
    """Whether any plan may take effect now. In lockstep the labelled frames follow from the plans
    and the rounds between them, so that a round has one plan."""
    return state.spec.mode == "streaming" or state.exploration.round is None


def waits(state: State, event: m.CampaignAmended) -> bool:
    """Whether an amendment has to wait for the end of a round. `state`: before the event."""
    if is_between_rounds(state):
        return False
    return not is_at_any_time(newest_plan(state), _spec_of(event))


# ------------------------------------------------------------------------------ the next plan


@dataclass(frozen=True)
class Amended:
    """A campaign's next plan."""

    state: State
    """Before it."""
    given: Spec
    """As the user gave it."""

    @staticmethod
    def by(state: State, event: m.CampaignAmended) -> Amended:
        return Amended(state, _overtaken(state, event, state.plan.number))

    @staticmethod
    def overtaking(state: State, event: m.CampaignAmended) -> Amended:
        """By an amendment that does not wait behind others: of the plans that wait, only what may
        change at any time comes into force with it."""
        return Amended(state, with_any_time(plan_in_force(state), _spec_of(event)))

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.given.stages)

    @cached_property
    def spec(self) -> Spec:
        """The plan as the state holds it: stages that were ever begun first, in their order."""
        new = {stage.name: stage for stage in self.given.stages}
        begun = [self.state.spec.stages[index] for index in self._begun]
        names = {stage.name for stage in begun}
        stages = [new.get(stage.name, stage) for stage in begun]
        stages += [stage for stage in self.given.stages if stage.name not in names]
        return self.given.model_copy(update={"stages": tuple(stages)})

    @property
    def _begun(self) -> list[int]:
        exploration = self.state.exploration
        running = [exploration.stage.index] if exploration.stage.rounds else []
        return sorted({*map(int, exploration.left), *running})

    @property
    def running(self) -> StageState | None:
        """The stage under way, if it goes on."""
        stage = self.state.exploration.stage
        return stage if self._is_under_way and self._name in self.order else None

    @property
    def leaves(self) -> bool:
        """Whether the plan drops the stage under way."""
        return self._is_under_way and self.running is None

    @property
    def _is_under_way(self) -> bool:
        stages = len(self.state.spec.stages)
        return (
            self.state.exploration.stage.rounds > 0 and self.state.exploration.stage.index < stages
        )

    @property
    def _name(self) -> str:
        return self.state.spec.stages[self.state.exploration.stage.index].name

    @cached_property
    def reopened(self) -> dict[int, str]:
        """Ended stages that are judged again, and why."""
        found = {}
        for ended in self.state.exploration.ended:
            why = self._why_again(ended)
            if why is not None:
                found[ended.stage] = why
        return found

    def _why_again(self, ended: m.StageEnded) -> str | None:
        old = self.state.spec.stages[ended.stage]
        new = next((stage for stage in self.given.stages if stage.name == old.name), None)
        if new is None:
            return None
        if explores_otherwise(old, new):
            return "it explores something else"
        if ended.verdict in ("stuck", "out-of-budget"):
            return "its rules have changed" if self._rules_changed(old, new) else None
        if new.repeat and ended.verdict == "explored":
            return "it has to converge now"
        return self._stricter(old, new) if new.repeat else None

    def _rules_changed(self, old: Stage, new: Stage) -> bool:
        return old != new or changes_below(self.state.spec, self.spec, *RULES)

    def _stricter(self, old: Stage, new: Stage) -> str | None:
        """Which rule judges the stage more strictly, if any does."""
        before, after = self.state.spec, self.given
        limit = stricter_limit(before, after)
        if limit is not None:
            return limit
        trusts = [(old.trust or before.trust, new.trust or after.trust)]
        systems = {*old.system_trust, *new.system_trust}
        trusts += [
            (old.system_trust.get(name, trusts[0][0]), new.system_trust.get(name, trusts[0][1]))
            for name in sorted(systems)
        ]
        if not all(is_looser(was, now) for was, now in trusts):
            return "its trust levels are stricter"
        return self._stricter_properties(old)

    def _stricter_properties(self, stage: Stage) -> str | None:
        """Properties decide on the last stage."""
        pairs = zip(
            self.state.spec.verification.properties, self.given.verification.properties, strict=True
        )
        is_last = stage.name == self.order[-1]
        if is_last and any(now.tolerance < was.tolerance for was, now in pairs):
            return "tolerances of properties are stricter"
        return None

    @property
    def starts_anew(self) -> bool:
        """Whether the passed rounds of the stage under way count no longer."""
        if self.running is None:
            return False
        old = self.state.spec.stages[self.running.index]
        new = self.spec.stages[self.running.index]
        return explores_otherwise(old, new) or self._stricter(old, new) is not None

    @property
    def new_trust(self) -> bool:
        """Whether the levels of the stage under way are others."""
        if self.running is None:
            return False
        old = self.state.spec.stages[self.running.index]
        new = self.spec.stages[self.running.index]
        was = old.trust or self.state.spec.trust, old.system_trust
        return was != (new.trust or self.given.trust, new.system_trust)

    @property
    def gives_up_round(self) -> bool:
        """Whether the round under way is given up: one committee explores by one pair of levels."""
        if self.state.exploration.round is None:
            return False
        index = self.state.exploration.stage.index
        if self.running is None:
            return True
        otherwise = explores_otherwise(self.state.spec.stages[index], self.spec.stages[index])
        return otherwise or self.new_trust

    @cached_property
    def ahead(self) -> tuple[int, ...]:
        """Indices of the stages that are explored from now on."""
        after = replace(self.state, spec=self.spec, plan=replace(self.state.plan, order=self.order))
        exploration, planned = after.exploration, set(after.planned)
        stays = planned - self.reopened.keys()
        ended = tuple(each for each in exploration.ended if each.stage in stays)
        after = replace(after, exploration=replace(exploration, ended=ended))
        return () if after.is_stuck else after.ahead

    @property
    def trains_again(self) -> bool:
        """Whether the committee training under way, of which a member was given up, begins again by
        the new settings. A limit on its time needs no new training."""
        given_up = any(self._is_given_up(task) for task in self.state.tasks.values())
        return given_up and self._trains_otherwise

    @property
    def _trains_otherwise(self) -> bool:
        """Whether trainings have other results: a limit on their time changes none."""
        keys = changed_keys(flat(self.state.spec), flat(self.given))
        return any(is_below(key, "training") and key != "training.max_hours" for key in keys)

    def _is_given_up(self, task: Task) -> bool:
        return task.status == "abandoned" and is_of_training(self.state, task)

    @property
    def trains_final_again(self) -> bool:
        return bool(self.ahead) or self._trains_otherwise

    @property
    def verifies_again(self) -> bool:
        keys = ("nve_ps", "nve_temperature", "max_drift")
        changed = (f"verification.{key}" for key in keys)
        return (
            self.trains_final_again
            or mendable(self.state)
            or changes_below(self.state.spec, self.given, *changed)
        )

    @property
    def trains_from_scratch(self) -> bool:
        return changes_below(self.state.spec, self.given, *ARCHITECTURE)

    @property
    def outcome(self) -> dict[str, Any]:
        """The fields of `PlanChanged` that the state follows."""
        return {
            "order": self.order,
            "reopened": tuple(sorted(self.reopened)),
            "leaves": self.leaves,
            "enters": self.running is None,
            "gives_up_round": self.gives_up_round,
            "starts_anew": self.starts_anew,
            "trains_again": self.trains_again,
            "trains_final_again": self.trains_final_again,
            "verifies_again": self.verifies_again,
            "trains_from_scratch": self.trains_from_scratch,
        }

    @property
    def changes(self) -> list[str]:
        found = differences(plan_in_force(self.state), self.given)
        return found or ["none: the final model is verified again"]

    def effects(self) -> Iterator[str]:
        """What is done again and what is given up, for users."""
        state, stages = self.state, self.state.spec.stages
        if state.finished is not None:
            yield f"the campaign, which ended {state.finished.verdict}, goes on"
        for ended in state.exploration.ended:
            name = f"stage `{stages[ended.stage].name}`"
            if ended.stage in self.reopened:
                why = self.reopened[ended.stage]
                yield f"{name}, which ended {ended.verdict}, is judged again: {why}"
            elif (
                ended.verdict in ("stuck", "out-of-budget")
                and stages[ended.stage].name in self.order
            ):
                yield (
                    f"{name} stays {ended.verdict}, and no later stage is explored until its rules "
                    "change or the plan drops it"
                )
        if self.leaves:
            yield f"stage `{self._name}` is left as it is; its labels stay"
        elif self.gives_up_round:
            yield f"the round of stage `{self._name}` starts again; what it found is judged again"
        if self.running is not None and self.running.passed and self.starts_anew:
            yield f"passed rounds of stage `{self._name}` no longer count"
        if self.trains_again:
            yield f"the training of committee {state.committee.training} begins again"
        if state.final.model is not None and self.trains_final_again:
            yield "the final model is trained again at the end"
        if self.trains_from_scratch and state.committee.version:
            yield "the next training starts from scratch"


def is_of_training(state: State, task: Task) -> bool:
    """Whether a task trains a member of the committee in training."""
    command, version = task.command, state.committee.training
    return isinstance(command, m.Train) and not command.final and command.version == version
