"""Starts campaigns: on this machine, or with a deployment."""
