"""Brokers, stores and batch systems on this machine."""
