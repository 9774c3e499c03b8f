"""Workers, and the child processes and parsers that they start."""
