"""Labeling codes and GROMACS: their inputs, outputs and stand-ins."""
