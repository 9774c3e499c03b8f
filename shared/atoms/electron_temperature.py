"""The electron temperature of a frame, stored as fparam or aparam (K), as the campaign defines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dpstream.shared.atoms.frames import Frame
from dpstream.shared.values import Carrier


def heated(frame: Frame, carrier: Carrier, kelvin: float) -> Frame:
    """The frame with the electron temperature `kelvin` (K)."""
    if carrier == "fparam":
        return replace(frame, fparam=np.array([kelvin]))
    return replace(frame, aparam=np.full((len(frame.species), 1), kelvin))


def electron_temperature(frame: Frame, carrier: Carrier) -> float:
    """The electron temperature in K. Raises ValueError if the frame has none, or different values
    for its atoms: first-principles codes support one electron temperature."""
    values = frame.parameters.get(carrier)
    if values is None or values.shape[-1] != 1:
        raise ValueError(
            f"the frame has no electron temperature: {carrier} must be one number, in K"
        )
    kelvin = float(values.flat[0])
    if np.ptp(values) or kelvin <= 0:
        raise ValueError(
            f"{carrier}: must be one electron temperature above 0 K for all atoms, not {values}"
        )
    return kelvin
