"""The labels that all campaigns share, by the key of the frame and the digest of the recipe.

Every labeler may write labels of any recipe, so that a label is used again only if it is of this
frame and by this recipe. One that is not stays where it is, for an operator to inspect, and the
label of the frame is stored beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from dpstream.shared.atoms.frames import Frame, FrameLabel, decode_labelled, frame_key
from dpstream.shared.errors import DigestMismatch, NotFound, Permanent
from dpstream.shared.logs import logger
from dpstream.shared.runtime.context import Context
from dpstream.shared.values import Ref, label_uri

log = logger()

PLACES = 5
"""Places for the label of a frame: further ones are used if the label in the first is wrong."""


@dataclass(frozen=True)
class KnownLabel:
    ref: Ref
    frame: Frame
    label: FrameLabel


def find(context: Context, recipe: str, key: str) -> KnownLabel | None:
    """The label of frame `key` by the recipe with digest `recipe`; None if there is none."""
    for uri in _places(recipe, key):
        try:
            return _read(context, uri, recipe, key)
        except NotFound:
            return None
        except ValueError as error:
            log.error(
                "label not used: it is damaged or of another frame", object=uri, reason=str(error)
            )
    return None


def keep(context: Context, recipe: str, key: str, data: bytes) -> KnownLabel:
    """Store a new label; returns the one that stands, which another task may have stored first.
    Raises Permanent if every place has a wrong label."""
    for uri in _places(recipe, key):
        if context.retry(partial(context.store.create, uri, data)):
            return KnownLabel(Ref.to(uri, data), *verified(data, recipe, key))
        try:
            return _read(context, uri, recipe, key)
        except ValueError:
            continue
    raise Permanent(f"label of frame {key} not stored: {PLACES} objects in its place are wrong")


def verified(data: bytes, recipe: str, key: str) -> tuple[Frame, FrameLabel]:
    """The frame and the label in an object. Raises ValueError if they are not of frame `key` and
    by the recipe with digest `recipe`."""
    try:
        frame, label, provenance = decode_labelled(data)
        found, made_by = frame_key(frame), (provenance["frame"], provenance["recipe"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a label: {type(error).__name__} {error}") from error
    if found != key:
        raise ValueError(f"its atoms are those of frame {found}")
    if made_by != (key, recipe):
        raise ValueError(f"its provenance names frame {made_by[0]} and recipe {made_by[1]}")
    arrays = (label.energy, label.forces, *(() if label.virial is None else (label.virial,)))
    shaped = label.forces.shape == frame.positions.shape and (
        label.virial is None or label.virial.shape == (3, 3)
    )
    if not shaped or not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("its energy, forces or virial are not finite numbers for every atom")
    return frame, label


def _read(context: Context, uri: str, recipe: str, key: str) -> KnownLabel:
    """The label in a place. Raises NotFound, ValueError for a wrong one."""
    try:
        data = context.retry(partial(context.store.get, uri))
    except DigestMismatch as error:
        raise ValueError(str(error)) from error
    return KnownLabel(Ref.to(uri, data), *verified(data, recipe, key))


def _places(recipe: str, key: str) -> Iterator[str]:
    first = label_uri(recipe, key)
    yield first
    for number in range(2, PLACES + 1):
        yield f"{first.removesuffix('.json')}.{number}.json"
