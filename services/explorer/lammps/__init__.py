"""LAMMPS in a child process, and its scripts."""
