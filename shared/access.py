"""Who may do what on bus and store: one table, from which broker users and bucket policies are
made.

Nobody but the coordinator declares, deletes or fills a work queue; what others say, they say under
the topics of their own events. Keys are patterns in which `*` stands for any characters. Whoever
creates an object may read it: a lost reply is told from a lost race by looking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

from dpstream.shared.codec import names_of
from dpstream.shared.messages import EVENTS, Publisher, Service, commands_of
from dpstream.shared.values import DEADLETTER_PREFIX

LISTENERS = "watch-*"
"""Temporary queues of those who listen to public events."""
SETTLING = "settling-*"
"""Queues made and deleted at once, by who declares those that stay."""

SPECS, SUBMISSIONS = "campaigns/*/spec.json", "campaigns/*/submitted.json"
INPUTS, PROPOSALS = "campaigns/*/inputs/*", "campaigns/*/proposals/*"
MANIFESTS, COMMITTEES = "campaigns/*/manifests/*", "campaigns/*/committees/*"
CLAIMS, RESULTS = "campaigns/*/claims/*", "campaigns/*/results/*"
STOPS = "campaigns/*/claims/*.stop"
LEDGERS, EPOCHS = "campaigns/*/ledger/*", "campaigns/*/epoch/*"
SNAPSHOTS, ENDS = "campaigns/*/snapshots/*", "campaigns/*/finished.json"
LABELS, DEADLETTERS, PROBES = "labels/*", f"{DEADLETTER_PREFIX}*", ".probe/*"
EVERYTHING = "*"


@dataclass(frozen=True)
class Role:
    """What one kind of process needs; nothing else is granted. `consumes` are queues of the
    topology, `says` and `hears` kinds of events. `creates` is create-if-absent, `replaces` an
    unconditional write, `lists` the beginnings of keys that may be listed."""

    consumes: tuple[str, ...] = ()
    commands: bool = False
    says: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    creates: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    deletes: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


def _queues(service: Service) -> tuple[str, ...]:
    """Of the topology, those of a service's commands."""
    return tuple(dict.fromkeys(kind.QUEUE.format("*") for kind in commands_of(service)))


def _topics(publisher: Publisher) -> tuple[str, ...]:
    """Kinds of events that a role publishes, under their former names too."""
    kinds = [kind for kind in EVENTS if publisher in kind.PUBLISHERS]
    return tuple(name for kind in kinds for name in names_of(kind))


WORKER_READS = (SPECS, INPUTS, MANIFESTS, COMMITTEES, CLAIMS, RESULTS, LABELS)
WORKER_CREATES = (CLAIMS, RESULTS, DEADLETTERS, PROBES)

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "coordinator": Role(
            consumes=("coordinator", "deadletters"),
            commands=True,
            says=_topics("coordinator"),
            hears=("*",),
            reads=("campaigns/*", LABELS, DEADLETTERS),
            creates=(
                CLAIMS,
                LEDGERS,
                EPOCHS,
                SNAPSHOTS,
                ENDS,
                MANIFESTS,
                COMMITTEES,
                DEADLETTERS,
                PROBES,
            ),
            replaces=(STOPS,),
            deletes=(PROBES,),
            lists=("campaigns/", DEADLETTER_PREFIX),
        ),
        "trainer": Role(
            consumes=_queues("trainer"),
            says=_topics("trainer"),
            reads=WORKER_READS,
            creates=WORKER_CREATES,
            deletes=(PROBES,),
        ),
        "explorer": Role(
            consumes=_queues("explorer"),
            says=_topics("explorer"),
            reads=(*WORKER_READS, PROPOSALS),
            creates=WORKER_CREATES,
            deletes=(PROBES,),
        ),
        "labeler": Role(
            consumes=_queues("labeler"),
            says=_topics("labeler"),
            reads=WORKER_READS,
            creates=(*WORKER_CREATES, LABELS),
            deletes=(PROBES,),
        ),
        "generator": Role(
            says=_topics("generator"),
            hears=("structures-judged", "models-ready", "campaign-finished"),
            reads=(SPECS, COMMITTEES, RESULTS, PROPOSALS),
            creates=(PROPOSALS, PROBES),
            deletes=(PROBES,),
        ),
        "operator": Role(
            says=_topics("operator"),
            hears=("*",),
            reads=(EVERYTHING,),
            creates=(SPECS, SUBMISSIONS, INPUTS, PROBES),
            deletes=(PROBES,),
            lists=("campaigns/", DEADLETTER_PREFIX),
        ),
    }
)


def merged(names: Sequence[str]) -> Role:
    """One role that may do what any of these may, for a process that is several things."""
    roles = [ROLES[name] for name in names]
    words: dict[str, tuple[str, ...]] = {
        each.name: tuple(dict.fromkeys(word for role in roles for word in getattr(role, each.name)))
        for each in fields(Role)
        if each.name != "commands"
    }
    return Role(commands=any(role.commands for role in roles), **words)


def kept_from(role: Role) -> tuple[str, ...]:
    """Keys that only the coordinator creates. Denied by name, because `*` in what is granted
    (`campaigns/*/results/*`) also stands for `x/ledger`."""
    own = ROLES["coordinator"].creates
    return tuple(pattern for pattern in own if pattern not in role.creates)
