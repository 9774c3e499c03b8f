"""Runs the same campaign with DP-GEN and with dpstream, and compares time, labels and error."""
