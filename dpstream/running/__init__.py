"""Submits and runs campaigns, on this machine or with a deployment."""
