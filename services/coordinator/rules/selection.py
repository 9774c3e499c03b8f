"""Decides when frames are selected from the pool, and how many.

A Select task receives a manifest of the pool: candidate batches and, at the end of a round, the
reservoirs of accurate and failed frames for the audit. The explorer makes the selection; the limits
per round, system and trajectory are set here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dpstream.services.coordinator.decisions import Decisions
from dpstream.services.coordinator.rules import convergence
from dpstream.services.coordinator.rules.trust import stage_of
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.values import CandidatePool, PoolItem, is_offered, stable_id, stable_seed


def select(decisions: Decisions) -> None:
    """Requests a selection at the end of a round, and while streaming when enough candidates have
    arrived."""
    state, current = decisions.state, decisions.state.exploration.round
    if current is None or current.closed or state.alive(m.Select):
        return
    if state.alive(m.Judge) or (state.spec.mode == "lockstep" and state.alive(m.Screen)):
        return
    over = current.unfinished == 0
    enough = state.candidates.added >= state.spec.selection.select_every
    if over or (state.spec.mode == "streaming" and enough and _free_slots(state)):
        _request_selection(decisions, over)


def _free_slots(state: State) -> int:
    """Labels that may still be requested under this committee version."""
    return max(0, min(state.spec.selection.per_round - state.candidates.selected, state.label_room))


def _request_selection(decisions: Decisions, over: bool) -> None:
    state, current = decisions.state, decisions.state.exploration.round
    assert current is not None
    candidates, reservoirs = state.candidates.pool, current.reservoirs if over else {}
    explored = any(not is_offered(item.trajectory) for item in candidates.values())
    no_candidate = over and not explored and not convergence.on_track(state)
    fallback = no_candidate and stage_of(state).repeat
    pool = CandidatePool(
        candidates=() if fallback else tuple(candidates[uri] for uri in sorted(candidates)),
        reservoirs=tuple(reservoirs[uri] for uri in sorted(reservoirs)),
        fallback=fallback,
        **_earlier_choices(state, reservoirs.values()),
    )
    body = pool.model_dump_json()
    name = f"pool-{current.number}-{'end' if over else 'mid'}-{stable_id(body)[:8]}"
    ref = decisions.manifest("pool", name, body)
    decisions.command(
        m.Select,
        name,
        title=f"select from {sum(item.count for item in pool.candidates)} candidates",
        committee=state.committee.manifest,
        version=state.committee.version,
        stage=state.exploration.stage.index,
        seed=stable_seed(state.spec.seed, "select", current.number, state.candidates.selected),
        pool=ref,
        labels=_free_slots(state),
        per_system=state.spec.selection.per_system,
        caps=_caps(state),
        audits=_audits_wanted(state) if over else 0,
    )


def _earlier_choices(state: State, reservoirs: Iterable[PoolItem]) -> dict[str, Any]:
    """`taken`: times of frames chosen earlier, under any version, from the trajectories in the
    pool; `used`: how many of them count towards the share of this version. An offered frame stays
    in the pool until it is accurate, so its trajectory is marked as used once its label was
    requested."""
    candidates = state.candidates
    here = {item.trajectory for item in (*candidates.pool.values(), *reservoirs)}
    explored = sorted(name for name in here if not is_offered(name))
    shares = {name: candidates.share(state.committee.version, name) for name in explored}
    taken = {name: candidates.taken[name] for name in explored if name in candidates.taken}
    used = {name: len(times) for name, times in shares.items() if times}
    if len(explored) < len(here):
        chosen = sorted(state.proposals.chosen)
        taken |= dict.fromkeys(chosen, (0.0,))
        used |= dict.fromkeys(chosen, state.spec.selection.per_trajectory)
    return {"taken": taken, "used": used}


def _caps(state: State) -> dict[str, int]:
    """Limits for systems accurate enough to get fewer labels than `per_system`."""
    none_above = state.spec.selection.none_above
    if none_above is None:
        return {}
    soft = state.spec.selection.fewer_above
    fewer_above = none_above if soft is None else soft
    shares = convergence.accurate_by_system(state)
    return {
        system: 0 if share >= none_above else _shrunk(state, share, none_above)
        for system, share in shares.items()
        if share >= fewer_above
    }


def _shrunk(state: State, share: float, none_above: float) -> int:
    rules = state.spec.selection
    assert rules.fewer_above is not None
    assert rules.per_system is not None
    left = (none_above - share) / (none_above - rules.fewer_above)
    return int(rules.per_system * left + 1e-9)  # rounding: 0.9 − 0.8 gives 1.9999… where 2 is meant


def _audits_wanted(state: State) -> int:
    """Audit frames to draw this round; none once the stage has twice the number it needs."""
    audit = state.spec.audit
    wanted = 2 * audit.min_frames - len(state.exploration.stage.audits)
    return max(0, min(audit.per_round, wanted, state.label_room))
