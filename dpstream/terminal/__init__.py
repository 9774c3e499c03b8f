"""Output on a terminal: plan, status, live view, tables, progress bars."""
