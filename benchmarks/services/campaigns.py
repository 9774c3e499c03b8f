"""Campaigns that consist of labels only: their first training is issued when all labels are in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ase.build import molecule

from dpstream.services.labeler.recipes import make_recipe
from dpstream.shared import messages as m
from dpstream.shared.atoms.frames import Batch, Frame, canonical, frame_key, from_ase
from dpstream.shared.codec import encode, topic_of
from dpstream.shared.ports import Bus, Outgoing, Store
from dpstream.shared.spec import Spec
from dpstream.shared.values import FrameRef, Recipe, Ref, campaign_uri, stable_id

CAPABILITY = "noop"
"""The queue of no-op labels."""
NO_RECIPE = Recipe(code=CAPABILITY, version="1", settings={}, charge=0, multiplicity=1)


def spec(name: str, bundle: int, code: str) -> Spec:
    return Spec.model_validate(
        {
            "name": name,
            "mode": "lockstep",
            "type_map": ["C", "H"],
            "systems": {"methane": {"structures": ["CH4.xyz"]}},
            "initial": {"perturb": {}},
            "training": {"members": 2},
            "stages": [{"name": "one", "systems": ["methane"], "temperatures": [300.0]}],
            "labels": {"code": code, "bundle": bundle},
            "budget": {"labels": 10_000_000},
        }
    )


def methanes(count: int, first: int = 0) -> list[Frame]:
    """Distorted CH4 molecules, all different."""
    frames = []
    for number in range(first, first + count):
        atoms = molecule("CH4")
        atoms.rattle(0.05, seed=number)
        frames.append(canonical(from_ase(atoms)).frame)
    return frames


def real(store: Store, name: str, frames: Sequence[Frame], bundle: int) -> None:
    """Stores a campaign whose labels are computed with GFN2-xTB."""
    of = spec(name, bundle, "tblite")
    refs = _stored(store, name, frames, [frame_key(frame) for frame in frames])
    _store(store, of, refs, make_recipe(of.labels))


def empty(store: Store, name: str, labels: int, bundle: int) -> None:
    """Stores a campaign whose labels are not computed: one frame under many keys."""
    keys = [hashlib.sha256(f"{name} {n}".encode()).hexdigest()[:32] for n in range(labels)]
    refs = _stored(store, name, methanes(1), keys)
    _store(store, spec(name, bundle, CAPABILITY), refs, NO_RECIPE)


def wake(bus: Bus, campaign: str) -> None:
    """Makes the coordinator open the campaign, whose submission is too long for a message."""
    request = m.CampaignResumed(id=stable_id("wake", campaign), campaign=campaign, time=0.0)
    bus.publish([Outgoing(encode(request), topic=topic_of(request))])


def _stored(
    store: Store, name: str, frames: Sequence[Frame], keys: Sequence[str]
) -> tuple[FrameRef, ...]:
    """One reference per key; the frames are used again from the first if there are fewer."""
    data = Batch.of(frames).dumps()
    batch = Ref.to(campaign_uri(name, "inputs", "frames.npz"), data)
    store.put(batch.uri, data)
    return tuple(
        FrameRef(batch=batch, index=n % len(frames), key=key) for n, key in enumerate(keys)
    )


def _store(store: Store, of: Spec, frames: tuple[FrameRef, ...], recipe: Recipe) -> None:
    body = of.model_dump_json().encode()
    key = campaign_uri(of.name, "spec.json")
    submitted = m.CampaignSubmitted(
        id=stable_id("campaign", of.name),
        campaign=of.name,
        time=0.0,
        spec=Ref.to(key, body),
        frames=frames,
        systems={"methane": frames[:1]},
        atoms={"methane": 5},
        recipe=recipe,
    )
    store.put(campaign_uri(of.name, "submitted.json"), submitted.model_dump_json().encode())
    store.put(key, body)
