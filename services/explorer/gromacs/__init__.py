"""GROMACS as a source of frames: its inputs, and how the explorer's child process runs it."""
