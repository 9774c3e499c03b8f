"""Reads and checks everything that a spec names, before anything starts.

`gather` is the entry point; the other modules each read one kind of file or check one section.
"""
