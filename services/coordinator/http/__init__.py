"""The coordinator's HTTP API, metrics and dashboard."""
