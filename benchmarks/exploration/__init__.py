"""Compares exploration engines with plain dynamics, and draws the figures of the docs."""
