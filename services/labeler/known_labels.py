"""The labels that all campaigns share, by the key of the frame and the digest of the recipe.

Every labeler may write labels of any recipe, so that a label is used again only if it is of this
frame and by this recipe, and signed by a labeler that the store's administrator trusts. One that is
not stays where it is, for an operator to inspect, and the label of the frame is stored beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from pydantic import ValidationError

from dpstream.services.labeler.signatures import Signers, public_key, sign, writer
from dpstream.shared.atoms.frames import Frame, FrameLabel, decode_labelled, frame_key
from dpstream.shared.errors import DigestMismatch, NotFound, Permanent, SpecError, errors_at
from dpstream.shared.logs import logger
from dpstream.shared.ports import Store
from dpstream.shared.runtime.context import Context
from dpstream.shared.spec.errors import first_of
from dpstream.shared.values import SIGNERS, Ref, label_uri

log = logger()

PLACES = 5
"""Places for the label of a frame: further ones are used if the label in the first is wrong."""


@dataclass(frozen=True)
class KnownLabel:
    """`writer`: the user that signed it; None for a label without signature."""

    ref: Ref
    frame: Frame
    label: FrameLabel
    writer: str | None = None


@dataclass
class KnownLabels:
    """The labels of the store, as one task finds and stores them. `signing_key`: the worker's;
    `unsigned`: whether it uses labels without signature again. `distrusted`: writers whose labels
    it does not. Recipes are given by digest."""

    context: Context
    signing_key: str | None = None
    unsigned: bool = True
    distrusted: tuple[str, ...] = ()

    def find(self, recipe: str, key: str) -> KnownLabel | None:
        """The label of frame `key` by a recipe; None if there is none."""
        for uri in _places(recipe, key):
            try:
                return self._read(uri, recipe, key)
            except NotFound:
                return None
            except ValueError as error:
                log.error("label not used", object=uri, reason=str(error))
        return None

    def signed(self, data: bytes) -> bytes:
        """A new label with this worker's signature, if it has a key."""
        return data if self.signing_key is None else sign(data, self.signing_key)

    def keep(self, recipe: str, key: str, data: bytes) -> KnownLabel:
        """Store a new label; returns the one that stands, which another task may have stored first.
        Raises Permanent if every place has a wrong label."""
        for uri in _places(recipe, key):
            if self.context.retry(partial(self.context.store.create, uri, data)):
                return KnownLabel(Ref.to(uri, data), *verified(data, recipe, key))
            try:
                return self._read(uri, recipe, key)
            except ValueError:
                continue
        raise Permanent(f"label of frame {key} not stored: {PLACES} objects in its place are wrong")

    def _read(self, uri: str, recipe: str, key: str) -> KnownLabel:
        """The label in a place. Raises NotFound, ValueError for a wrong one."""
        try:
            data = self.context.retry(partial(self.context.store.get, uri))
        except DigestMismatch as error:
            raise ValueError(str(error)) from error
        frame, label = verified(data, recipe, key)
        return KnownLabel(Ref.to(uri, data), frame, label, self._writer(data))

    def _writer(self, data: bytes) -> str | None:
        """The user that signed a label. Raises ValueError if its labels are not used again."""
        found = None if self._signers is None else writer(data, self._signers)
        if self._signers is not None and found is None and not self.unsigned:
            raise ValueError("it has no signature (DPSTREAM_LABELER_UNSIGNED)")
        if (found or "") in self.distrusted:
            raise ValueError(f"its writer {found or '(none)'} is distrusted")
        return found

    @cached_property
    def _signers(self) -> Signers | None:
        """Those that the store lists; None: it lists none, and signatures are not looked at."""
        try:
            return self.context.retry(partial(listed_signers, self.context.store))
        except ValidationError as error:
            raise Permanent(f"{SIGNERS}: {first_of(error)}") from error


def listed_signers(store: Store) -> Signers | None:
    """Whose labels the store's administrator trusts; None without a list. Raises ValidationError,
    StoreError."""
    try:
        return Signers.model_validate_json(store.get(SIGNERS))
    except NotFound:
        return None


def check_key(key: str | None, store: Store) -> None:
    """Raises SpecError if labels that are signed with this private key would not be used again."""
    with errors_at(f"{SIGNERS} in the store", ValidationError):
        signers = listed_signers(store)
    if signers is None:
        return
    if key is None:
        log.warning("labels are not signed: set DPSTREAM_LABELER_SIGNING_KEY", signers=SIGNERS)
    elif public_key(key) not in signers.keys:
        raise SpecError(
            f"{SIGNERS} in the store lacks this worker's key: copy the file label-signers.json "
            "there that `dpstream access` has written"
        )


def verified(data: bytes, recipe: str, key: str) -> tuple[Frame, FrameLabel]:
    """The frame and the label in an object. Raises ValueError if they are not of frame `key` and
    by the recipe with digest `recipe`."""
    try:
        frame, label, provenance = decode_labelled(data)
        found, made_by = frame_key(frame), (provenance["frame"], provenance["recipe"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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


def _places(recipe: str, key: str) -> Iterator[str]:
    first = label_uri(recipe, key)
    yield first
    for number in range(2, PLACES + 1):
        yield f"{first.removesuffix('.json')}.{number}.json"
