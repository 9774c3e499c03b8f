"""Frames, labels, datasets, and quantities computed from them."""
