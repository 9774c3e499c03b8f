"""Quantum ESPRESSO's pw.x: the code, and the keywords of its input."""
