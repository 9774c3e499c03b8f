"""LAMMPS in the child process, and its input scripts."""
