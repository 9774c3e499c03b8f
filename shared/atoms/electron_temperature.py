"""The electron temperature of a frame: one of its parameters, in K, where a campaign says which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dpstream.shared.atoms.frames import Frame
from dpstream.shared.values import Carrier


def heated(frame: Frame, carrier: Carrier, kelvin: float) -> Frame:
    """The frame with electrons at `kelvin`."""
    if carrier == "fparam":
        return replace(frame, fparam=np.array([kelvin]))
    return replace(frame, aparam=np.full((len(frame.species), 1), kelvin))


def electron_temperature(frame: Frame, carrier: Carrier) -> float:
    """K. ValueError where the frame does not say it, or where its atoms differ: a first-principles
    code has one electron temperature."""
    values = frame.parameters.get(carrier)
    if values is None or values.shape[-1] != 1:
        raise ValueError(f"the frame has no {carrier} of one number, its electron temperature in K")
    kelvin = float(values.flat[0])
    if np.ptp(values) or kelvin <= 0:
        raise ValueError(
            f"{carrier}: one electron temperature above 0 K for all atoms, not {values}"
        )
    return kelvin
