"""How many workers each pool wants, and what is launched and taken back for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.coordinator.fleet.plan import (
    Demand,
    FleetPlan,
    PoolStanding,
    plan,
    time_of,
)
from dpstream.services.coordinator.fleet.pools import PoolSettings
from dpstream.shared.ports import Launch

NOW = 1_000_000.0
VASP = "label.vasp"


def pool(**changes: Any) -> PoolSettings:
    settings = {"engine": "process", "serves": (VASP,), "max": 10, "start_time": 10, "step": 4}
    return PoolSettings(**(settings | changes))  # type: ignore[arg-type]


def standing(**counts: Any) -> PoolStanding:
    return PoolStanding((Launch("a", "p", since=NOW - 300, **counts),))


def one(demand: Demand, what: PoolStanding | None = None, **changes: Any) -> FleetPlan:
    return plan({VASP: demand}, {"p": what or PoolStanding()}, {"p": pool(**changes)}, NOW)


def launched(found: FleetPlan) -> dict[str, int]:
    return {launch.pool: launch.count for launch in found.launches}


def wanted(found: FleetPlan, name: str = "p") -> int:
    return found.verdicts[name].wanted


# --------------------------------------------------------------------------------- one pool


def test_nothing_is_wanted_without_tasks() -> None:
    found = one(Demand())
    assert (wanted(found), found.launches) == (0, ())


def test_each_long_task_wants_a_worker_up_to_max() -> None:
    assert wanted(one(Demand(waiting=7, seconds=355.0))) == 7
    full = one(Demand(waiting=500, seconds=355.0), max=3)
    assert (wanted(full), full.verdicts["p"].reason) == (3, "max")


def test_a_worker_is_worth_twice_its_start_time_of_work() -> None:
    """1 s labels on nodes that take 90 s to come: 180 tasks for each worker."""
    assert wanted(one(Demand(waiting=900, seconds=1.0), start_time=90)) == 5


def test_a_process_with_slots_counts_as_many_tasks() -> None:
    assert wanted(one(Demand(waiting=7, seconds=355.0), slots=2)) == 4
    shared = one(Demand(waiting=1, running=1, seconds=355.0), standing(running=1), slots=4)
    assert (wanted(shared), launched(shared)) == (1, {})


def test_a_pool_doubles_from_its_step() -> None:
    assert launched(one(Demand(waiting=50, seconds=99.0), max=50)) == {"p": 4}
    assert launched(one(Demand(waiting=50, seconds=99.0), standing(waiting=4), max=50)) == {}
    assert launched(one(Demand(waiting=50, seconds=99.0), standing(running=4), max=50)) == {"p": 4}
    assert launched(one(Demand(waiting=50, seconds=99.0), standing(running=8), max=50)) == {"p": 8}


def test_what_starts_counts_and_is_not_launched_again() -> None:
    found = one(Demand(waiting=3, seconds=99.0), standing(starting=2, waiting=1))
    assert (launched(found), found.retirements) == ({}, ())


def test_running_tasks_keep_workers_and_never_launch_any() -> None:
    assert launched(one(Demand(running=5, seconds=99.0))) == {}
    kept = one(Demand(running=2, seconds=99.0), standing(running=2, waiting=1))
    assert wanted(kept) == 2
    assert [(r.launch.name, r.most) for r in kept.retirements] == [("a", 1)]


def test_what_waits_is_taken_back_after_the_cool_down_and_nothing_else_is() -> None:
    found = one(Demand(), standing(waiting=3, starting=1, running=4))
    assert [(r.launch.name, r.most) for r in found.retirements] == [("a", 3)]
    fresh = PoolStanding((Launch("a", "p", waiting=3, since=NOW - 5),))
    assert one(Demand(), fresh).retirements == ()


def test_what_is_not_listed_yet_is_not_taken_back_and_does_not_save_what_is() -> None:
    """The engine does not find it, and would take nothing back."""
    old = Launch("old", "p", waiting=2, since=NOW - 300)
    new = Launch("new", "p", waiting=2, since=NOW - 200, listed=False)
    found = one(Demand(waiting=2, seconds=99.0), PoolStanding((old, new)))
    assert [(each.launch.name, each.most) for each in found.retirements] == [("old", 2)]


def test_a_measured_start_time_beyond_the_given_one_counts() -> None:
    short = Demand(waiting=360, seconds=1.0)
    assert wanted(one(short)) == 10
    assert wanted(one(short, PoolStanding(start_time=90.0))) == 2
    assert wanted(one(short, PoolStanding(start_time=5.0), max=99)) == 18


def test_the_workers_of_the_minimum_stay_and_others_do_not() -> None:
    warm = one(Demand(waiting=9, seconds=355.0), min=2)
    assert [(each.count, each.warm) for each in warm.launches] == [(2, True)]
    rest = one(Demand(waiting=9, seconds=355.0), standing(running=2), min=2)
    assert [(each.count, each.warm) for each in rest.launches] == [(4, False)]


def test_a_minimum_is_kept_without_tasks() -> None:
    found = one(Demand(), min=2)
    assert (wanted(found), launched(found)) == (2, {"p": 2})


def test_while_the_engine_is_silent_nothing_is_launched_or_taken_back() -> None:
    silent = replace(standing(waiting=2, running=1), unknown_since=NOW - 1, silence="unreachable")
    for demand in (Demand(waiting=9, seconds=99.0), Demand()):
        found = one(demand, silent)
        assert (found.launches, found.retirements) == ((), ())
    assert found.verdicts["p"].reason == "the fleet engine does not answer: unreachable"


def test_a_ceiling_that_the_engine_taught_holds() -> None:
    found = one(Demand(waiting=9, seconds=99.0), replace(standing(running=2), ceiling=3))
    assert (wanted(found), launched(found)) == (3, {"p": 1})
    assert found.verdicts["p"].reason == "limit of the fleet engine"


# ------------------------------------------------------------------------------ several pools


def both(demand: Demand, **what: PoolStanding) -> FleetPlan:
    pools = {"cheap": pool(max=4, price=0.1), "dear": pool(max=10, price=0.5)}
    return plan({VASP: demand}, what, pools, NOW)


def test_the_cheapest_pool_comes_first_and_passes_on_what_it_cannot_take() -> None:
    found = both(Demand(waiting=6, seconds=99.0))
    assert (wanted(found, "cheap"), wanted(found, "dear")) == (4, 2)


@pytest.mark.parametrize(
    "held",
    [
        PoolStanding(blocked="3 launches failed"),
        PoolStanding(unknown_since=NOW - 1),
        PoolStanding((Launch("a", "cheap", waiting=4, since=NOW - 700, reason="Resources"),)),
    ],
)
def test_a_pool_that_is_held_passes_its_demand_on(held: PoolStanding) -> None:
    found = both(Demand(waiting=6, seconds=99.0), cheap=held)
    assert wanted(found, "dear") == 6


def test_what_waits_too_long_stays_wanted_and_says_why() -> None:
    late = PoolStanding((Launch("a", "cheap", waiting=4, since=NOW - 700, reason="Resources"),))
    found = both(Demand(waiting=6, seconds=99.0), cheap=late)
    assert found.retirements == ()
    assert found.verdicts["cheap"].reason == "launches wait longer than patience: Resources"
    assert [r.launch.name for r in both(Demand(), cheap=late).retirements] == ["a"]


def test_a_process_that_has_just_begun_to_wait_does_not_make_its_launch_late() -> None:
    """A pod that takes the place of a preempted one."""
    replaced = Launch("a", "cheap", running=3, waiting=1, since=NOW - 700, waits_since=NOW - 1)
    found = both(Demand(waiting=1, running=3, seconds=99.0), cheap=PoolStanding((replaced,)))
    assert (wanted(found, "cheap"), wanted(found, "dear")) == (4, 0)


def test_tasks_that_run_elsewhere_keep_nothing_that_waits() -> None:
    busy = PoolStanding((Launch("b", "dear", running=10, since=NOW - 700),))
    late = PoolStanding((Launch("a", "cheap", waiting=4, since=NOW - 500),))
    found = both(Demand(running=10, seconds=99.0), cheap=late, dear=busy)
    assert (wanted(found, "cheap"), wanted(found, "dear")) == (0, 10)
    assert [r.launch.name for r in found.retirements] == ["a"]


def test_a_quota_makes_launches_smaller() -> None:
    found = one(Demand(waiting=9, seconds=99.0), PoolStanding(most=2))
    assert launched(found) == {"p": 2}


def test_the_name_of_a_launch_says_when_it_was_made() -> None:
    (launch,) = one(Demand(waiting=1, seconds=99.0)).launches
    assert time_of(launch.name) == pytest.approx(NOW, abs=1e-3)
    assert time_of("one") == 0.0


def test_a_pool_serves_several_queues() -> None:
    pools = {"cpu": pool(serves=("explore", "judge"))}
    demand = {"explore": Demand(waiting=2, seconds=99.0), "judge": Demand(waiting=1, seconds=99.0)}
    assert wanted(plan(demand, {}, pools, NOW), "cpu") == 3


# --------------------------------------------------------------------------------- properties

launches = st.builds(
    Launch,
    name=st.sampled_from(["a", "b", "c"]),
    pool=st.just("p"),
    waiting=st.integers(0, 5),
    starting=st.integers(0, 5),
    running=st.integers(0, 5),
    since=st.floats(NOW - 2000, NOW),
)
standings = st.builds(
    PoolStanding,
    launches=st.lists(launches, max_size=3, unique_by=lambda each: each.name).map(tuple),
    unknown_since=st.none() | st.floats(NOW - 2000, NOW),
    blocked=st.sampled_from(["", "budget"]),
    ceiling=st.none() | st.integers(0, 12),
)
demands = st.builds(
    Demand,
    waiting=st.integers(0, 2000),
    running=st.integers(0, 2000),
    seconds=st.none() | st.floats(0.01, 5000),
)
pools_of = st.builds(
    pool,
    max=st.integers(4, 60),
    slots=st.integers(1, 4),
    step=st.integers(1, 8),
    min=st.integers(0, 2),
    price=st.floats(0, 5),
)


@given(demands, st.tuples(standings, standings), st.tuples(pools_of, pools_of))
def test_no_pool_exceeds_its_limits_and_no_started_worker_is_taken_back(
    demand: Demand,
    found: tuple[PoolStanding, PoolStanding],
    pools: tuple[PoolSettings, PoolSettings],
) -> None:
    named = dict(zip("pq", pools, strict=True))
    there = dict(zip("pq", found, strict=True))
    done = plan({VASP: demand}, there, named, NOW)
    assert plan({VASP: demand}, there, dict(reversed(named.items())), NOW) == done
    for launch in done.launches:
        before = there[launch.pool]
        assert launch.count > 0
        assert before.alive + launch.count <= named[launch.pool].max
        assert before.ceiling is None or before.alive + launch.count <= before.ceiling
        assert not before.blocked
        assert before.unknown_since is None
    for retirement in done.retirements:
        assert 0 < retirement.most <= retirement.launch.waiting
    both_ways = {launch.pool for launch in done.launches} & {
        name for name in there for r in done.retirements if r.launch in there[name].launches
    }
    assert not both_ways or there["p"] == there["q"]


@given(demands, standings, pools_of)
def test_tasks_that_run_launch_nothing(
    demand: Demand, found: PoolStanding, pool_: PoolSettings
) -> None:
    quiet = pool_.model_copy(update={"min": 0})
    assert not plan({VASP: replace(demand, waiting=0)}, {"p": found}, {"p": quiet}, NOW).launches


@given(demands, st.integers(0, 40), pools_of)
def test_no_fewer_and_no_more_workers_than_the_tasks_have_slots_for(
    demand: Demand, running: int, pool_: PoolSettings
) -> None:
    """Tasks that are worth a slot each, on workers that are up: ⌈tasks ÷ slots⌉."""
    long = replace(demand, seconds=None)
    done = plan({VASP: long}, {"p": standing(running=running)}, {"p": pool_}, NOW).verdicts["p"]
    tasks = long.waiting + done.busy_slots
    assert done.busy_slots == min(long.running, running * pool_.slots)
    if pool_.min < done.wanted < pool_.max:
        assert (done.wanted - 1) * pool_.slots < tasks <= done.wanted * pool_.slots
    elif done.wanted == pool_.max:
        assert tasks > (pool_.max - 1) * pool_.slots or pool_.max == pool_.min
    else:
        assert tasks <= pool_.min * pool_.slots


@given(st.integers(1, 400), st.floats(0.1, 500), pools_of)
def test_a_pool_that_launches_what_is_planned_reaches_what_it_wants(
    waiting: int, seconds: float, pool_: PoolSettings
) -> None:
    """From nothing, each launch starts within its turn."""
    started = 0
    for _ in range(70):
        what = PoolStanding((Launch("a", "p", running=started),))
        done = plan({VASP: Demand(waiting, 0, seconds)}, {"p": what}, {"p": pool_}, NOW)
        if not done.launches:
            break
        started += done.launches[0].count
    assert started == done.verdicts["p"].wanted
    assert started > 0
