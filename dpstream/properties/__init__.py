"""Computes material properties with a model and with its recipe, and compares them."""
