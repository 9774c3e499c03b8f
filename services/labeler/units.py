"""Conversion factors (CODATA 2018) to eV, Å and K."""

HARTREE = 27.211386245988
"""eV."""
BOHR = 0.529177210903
"""Å."""
RYDBERG = HARTREE / 2
"""eV."""
BOLTZMANN = 8.617333262e-5
"""eV/K."""
GPA = 1 / 160.2176634
"""eV/Å³."""
KBAR = GPA / 10
"""eV/Å³."""
