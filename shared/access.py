"""Access rights of every kind of process on bus and store, as one table.

`dpstream.deploy.rights` turns the table into broker permissions and bucket policies. Only the
coordinator declares, deletes and fills work queues; every other role publishes its own events under
their topics. Object keys are patterns in which `*` stands for any characters. A role that creates
objects may also read them: after a lost reply, it reads the key to see whether its write succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

from dpstream.shared.bus.topology import CONTROL, COORDINATOR
from dpstream.shared.bus.topology import DEADLETTERS as DEADLETTER_QUEUE
from dpstream.shared.bus.topology import PROPOSALS as PROPOSAL_QUEUE
from dpstream.shared.codec import names_of
from dpstream.shared.messages import EVENTS, Publisher, Service, commands_of
from dpstream.shared.values import DEADLETTER_PREFIX, FLEET_PREFIX, PROGRAMS, SIGNERS

LISTENERS = "watch-*"
"""Temporary queues of clients that subscribe to public events."""
SETTLING = "settling-*"
"""Queues that a client creates and deletes at once after it declared durable ones."""

SPECS, SUBMISSIONS = "campaigns/*/spec.json", "campaigns/*/submitted.json"
INPUTS, PROPOSALS = "campaigns/*/inputs/*", "campaigns/*/proposals/*"
MANIFESTS, COMMITTEES = "campaigns/*/manifests/*", "campaigns/*/committees/*"
CLAIMS, RESULTS = "campaigns/*/claims/*", "campaigns/*/results/*"
STOPS = "campaigns/*/claims/*.stop"
LEDGERS, EPOCHS = "campaigns/*/ledger/*", "campaigns/*/epoch/*"
HEADS = "campaigns/*/heads/*"
SNAPSHOTS, PLANS = "campaigns/*/snapshots/*", "campaigns/*/plans/*"
ENDS, LATER_ENDS = "campaigns/*/finished.json", "campaigns/*/finished-*.json"
FLEET, SPENT = f"{FLEET_PREFIX}*", f"{FLEET_PREFIX}*/spent.json"
RECORDS = (LEDGERS, HEADS, EPOCHS, SNAPSHOTS, PLANS, ENDS, LATER_ENDS)
PARKED = "campaigns/*/parked/*"
LABELS, DEADLETTERS, PROBES = "labels/*", f"{DEADLETTER_PREFIX}*", ".probe/*"
EVERYTHING = "*"
Keys = tuple[str, ...]


@dataclass(frozen=True)
class Role:
    """What one kind of process needs; nothing else is granted. `consumes` are queues of the
    topology, `publishes` and `subscribes` are kinds of events. `creates` is create-if-absent,
    `replaces` an unconditional write, `lists` the key prefixes that may be listed."""

    consumes: tuple[str, ...] = ()
    commands: bool = False
    publishes: tuple[str, ...] = ()
    subscribes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    creates: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    deletes: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    connections: int = 20_000
    """Most connections of one user to the broker. Every worker of a pool has one."""


def _queues(service: Service) -> tuple[str, ...]:
    """The work queues of a service's commands."""
    return tuple(dict.fromkeys(kind.QUEUE.format("*") for kind in commands_of(service)))


def _topics(publisher: Publisher) -> tuple[str, ...]:
    """Kinds of events that a role publishes, including their former names."""
    kinds = [kind for kind in EVENTS if publisher in kind.PUBLISHERS]
    return tuple(name for kind in kinds for name in names_of(kind))


WORKER_READS = (SPECS, PLANS, INPUTS, CLAIMS, RESULTS, LABELS)
MODELS = (MANIFESTS, COMMITTEES)
WORKER_CREATES = (CLAIMS, RESULTS, DEADLETTERS, PROBES)


def _worker(service: Service, reads: Keys = (), creates: Keys = ()) -> Role:
    return Role(
        consumes=_queues(service),
        publishes=_topics(service),
        reads=(*WORKER_READS, *reads),
        creates=(*WORKER_CREATES, *creates),
        deletes=(PROBES,),
    )


ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "coordinator": Role(
            consumes=(COORDINATOR, CONTROL, PROPOSAL_QUEUE, DEADLETTER_QUEUE),
            commands=True,
            publishes=_topics("coordinator"),
            subscribes=("*",),
            reads=("campaigns/*", LABELS, DEADLETTERS, FLEET),
            creates=(CLAIMS, *RECORDS, MANIFESTS, COMMITTEES, PARKED, DEADLETTERS, FLEET, PROBES),
            replaces=(STOPS, SPENT, PROGRAMS),
            deletes=(PARKED, PROBES),
            lists=("campaigns/", DEADLETTER_PREFIX),
            connections=10,
        ),
        "trainer": _worker("trainer", reads=MODELS),
        "explorer": _worker("explorer", reads=(*MODELS, PROPOSALS)),
        "labeler": _worker("labeler", reads=(SIGNERS,), creates=(LABELS,)),
        "generator": Role(
            publishes=_topics("generator"),
            subscribes=("structures-judged", "models-ready", "campaign-finished"),
            reads=(SPECS, COMMITTEES, RESULTS, PROPOSALS),
            creates=(PROPOSALS, PROBES),
            deletes=(PROBES,),
            connections=20,
        ),
        "operator": Role(
            publishes=_topics("operator"),
            subscribes=("*",),
            reads=(EVERYTHING,),
            creates=(SPECS, SUBMISSIONS, INPUTS, PROBES),
            deletes=(PROBES,),
            lists=("campaigns/", FLEET_PREFIX, DEADLETTER_PREFIX),
            connections=100,
        ),
    }
)


def merged(names: Sequence[str]) -> Role:
    """One role with the rights of all these, for a process that plays several parts."""
    roles = [ROLES[name] for name in names]
    rights: dict[str, tuple[str, ...]] = {
        each.name: tuple(dict.fromkeys(item for role in roles for item in getattr(role, each.name)))
        for each in fields(Role)
        if each.name not in ("commands", "connections")
    }
    return Role(
        commands=any(role.commands for role in roles),
        connections=max(role.connections for role in roles),
        **rights,
    )


def kept_from(role: Role) -> tuple[str, ...]:
    """Keys that only other roles write. They are denied explicitly, because the `*` of a granted
    pattern (`campaigns/*/results/*`) also matches slashes and so other folders' keys."""
    if role.commands:
        return ()
    written = dict.fromkeys(key for each in ROLES.values() for key in each.creates + each.replaces)
    return tuple(pattern for pattern in written if pattern not in role.creates + role.replaces)
