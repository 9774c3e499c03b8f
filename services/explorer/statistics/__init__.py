"""Estimates from audit frames."""
