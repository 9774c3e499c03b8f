"""Reads and checks what a spec names."""
