"""Plots two quantities over time, one curve per way of exploring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

from dpstream.shared.atoms.frames import Floats

matplotlib.use("agg")


def saved(
    path: Path,
    title: str,
    labels: tuple[str, str],
    curves: Mapping[str, tuple[Floats, Floats, Floats]],
) -> None:
    """Writes the plot. `curves`: time in ps, and the values of the upper and the lower panel."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 1, sharex=True, figsize=(6, 5), layout="constrained")
    for name, (time, *rows) in curves.items():
        for panel, values in zip(panels, rows, strict=True):
            panel.plot(time, values, label=name, linewidth=1)
    for panel, label in zip(panels, labels, strict=True):
        panel.set_ylabel(label)
    panels[0].set_title(title)
    panels[0].legend()
    panels[1].set_xlabel("time (ps)")
    panels[1].set_yscale("log")
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")
