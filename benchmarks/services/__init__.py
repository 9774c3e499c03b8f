"""Measures the overhead of the services on a real broker and a real object store."""
