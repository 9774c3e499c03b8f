"""The loop, without engines: order, loss and repetition of deliveries change nothing."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.coordinator.evolve import evolve
from services.coordinator.policy import decide
from services.coordinator.state import State
from shared import messages as m
from tests.unit.world import World, run, spec


def in_order(under_way: list[m.Message]) -> m.Message:
    return under_way.pop(0)


def faulty(seed: int) -> Any:
    """Shuffled, some doubled, some dropped and delivered again later."""
    rng = random.Random(seed)

    def deliver(under_way: list[m.Message]) -> m.Message:
        event = under_way.pop(rng.randrange(len(under_way)))
        if rng.random() < 0.2:
            under_way.append(event)  # doubled: this one and a later copy
        return event

    return deliver


def replayed(start: State, ledger: list[tuple[m.Message, tuple[m.Message, ...]]]) -> State:
    state = start
    for event, decided in ledger:
        for message in (event, *decided):
            state = evolve(state, message)
    return state


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_lockstep_ends_in_the_same_state_whatever_the_deliveries(seed: int) -> None:
    calm, _ = run(World(), spec(), in_order, decide)
    stormy, _ = run(World(), spec(), faulty(seed), decide)
    assert calm.finished is not None
    assert stormy.dumps() == calm.dumps()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["lockstep", "streaming"]))
def test_replaying_the_ledger_gives_the_state_byte_for_byte(seed: int, mode: str) -> None:
    of = spec(mode=mode)
    state, ledger = run(World(), of, faulty(seed), decide)
    assert replayed(State(spec=of), ledger).dumps() == state.dumps()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_streaming_finishes_and_asks_for_no_label_twice(seed: int) -> None:
    world = World()
    state, _ = run(world, spec(mode="streaming"), faulty(seed), decide)
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    assert len(world.labelled) == len(set(world.labelled))
    assert state.pending == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_a_snapshot_reads_back_to_the_same_state(seed: int) -> None:
    state, _ = run(World(), spec(mode="streaming"), faulty(seed), decide, steps=60)
    assert State.model_validate_json(state.dumps()).dumps() == state.dumps()


def test_a_doubled_event_is_not_even_ledgered() -> None:
    _, ledger = run(
        World(),
        spec(),
        lambda u: (u.append(u[0]), u.pop(0))[1] if len(u) < 50 else u.pop(0),
        decide,
        400,
    )
    heard = [event.id for event, _ in ledger]
    assert len(heard) == len(set(heard))
