"""Handlers of the explorer's commands, one module per command."""
