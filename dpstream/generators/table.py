"""Verdicts as lines of a table."""

from __future__ import annotations

from dpstream.generators.client import Verdict

HEADER = f"{'frame':>5}  {'verdict':<10}{'eV/Å':>8}  {'committee':>9}  {'energy (eV)':>12}  reason"


def row(verdict: Verdict) -> str:
    deviation = "" if verdict.deviation is None else f"{verdict.deviation:.4f}"
    energy = "" if verdict.energy is None else f"{verdict.energy:.4f}"
    version = str(verdict.version or "")
    return (
        f"{verdict.index:>5}  {verdict.verdict:<10}{deviation:>8}  {version:>9}  {energy:>12}  "
        f"{verdict.reason}"
    ).rstrip()
