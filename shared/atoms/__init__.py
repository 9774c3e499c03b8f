"""Frames, labels and what is computed from them."""
