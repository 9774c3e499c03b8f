"""The trained models: members of every committee version with their errors, and the final model.

Built from the ledger, which keeps all versions. The state keeps the newest committee alone, so a
live view builds this once and then adds what is new in each state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.projection import Changes, Projection
from dpstream.shared import messages as m

Errors = Literal["train", "audit", "test"]
"""The frames that an error is measured on: those trained on, audit frames, the held-out set."""


@dataclass
class Version:
    """One committee version. `cold`: trained from scratch; `members`: the trained ones, by
    number."""

    number: int
    cold: bool = True
    members: dict[int, m.MemberTrained] = field(default_factory=dict)

    @property
    def frames(self) -> int | None:
        """Number of frames it was trained on."""
        return next((member.train.frames for member in self.members.values()), None)


@dataclass
class Committees(Projection):
    """`versions`: by number, from the first training command on; `judged`: verdicts on trainings;
    `commands`: the training of each model, by task; `final`: of the newest plan that has one."""

    versions: dict[int, Version] = field(default_factory=dict)
    final: m.MemberTrained | None = None
    judged: list[m.TrainingJudged] = field(default_factory=list)
    commands: dict[str, m.Train] = field(default_factory=dict)

    def add_newest(self, state: State) -> None:
        """Take in models that the state has and the messages so far did not."""
        for member in state.committee.members.values():
            self._trained(member, final=False)
        if state.final.model is not None:
            self._trained(state.final.model, final=True)

    def _issued(self, command: m.Train) -> None:
        self.commands[command.task] = command
        if not command.final:
            self._version(command.version).cold = command.start is None

    def _result(self, event: m.MemberTrained) -> None:
        if event.task in self.commands:
            self._trained(event, self.commands[event.task].final)

    def _trained(self, member: m.MemberTrained, final: bool) -> None:
        """The first result of a training counts."""
        if final:
            again = self.final is not None and self.final.task == member.task
            self.final = self.final if again else member
        else:
            self._version(member.version).members.setdefault(member.member, member)

    def _version(self, number: int) -> Version:
        return self.versions.setdefault(number, Version(number))

    def members(self, version: int) -> list[m.MemberTrained]:
        """The trained members of a version, in order."""
        known = self.versions.get(version, Version(version)).members
        return [member for _, member in sorted(known.items())]

    def by_name(self) -> Mapping[str, list[m.MemberTrained]]:
        """The models of each version that has any, in order, and at last the final model."""
        named = {f"committee {number}": self.members(number) for number in sorted(self.versions)}
        named["final model"] = [] if self.final is None else [self.final]
        return {name: members for name, members in named.items() if members}

    @property
    def complete(self) -> int:
        """Number of versions with all of their members."""
        due = Counter(command.version for command in self.commands.values() if not command.final)
        versions = self.versions.values()
        return sum(len(version.members) == due[version.number] for version in versions)

    @property
    def limited_by(self) -> tuple[str, str]:
        """What keeps the newest committee from better forces, and why."""
        if not self.judged:
            return "not known yet", "no committee has been judged"
        newest = self.judged[-1]
        if newest.verdict != "sound":
            return newest.verdict, newest.why
        return "data-limited", (
            f"committee {newest.version} fits its training labels ({newest.why}); lower "
            "errors need labels of configurations it was not trained on"
        )

    CHANGES: ClassVar[Changes] = {
        m.Train: _issued,
        m.MemberTrained: _result,
        m.TrainingJudged: lambda committees, decision: committees.judged.append(decision),
    }


def devices(members: Iterable[m.MemberTrained]) -> list[str]:
    """What the members were trained on, each once; trainers of release 0.1 do not report it."""
    return list(dict.fromkeys(str(member.device) for member in members if member.device))


def force_errors(members: Iterable[m.MemberTrained], on: Errors) -> list[float]:
    """Force RMSE of the members that it was measured for, eV/Å."""
    measured = [getattr(member, on) for member in members]
    return [rmse.force for rmse in measured if rmse is not None]
