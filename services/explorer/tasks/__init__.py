"""One file per command of the explorer."""
