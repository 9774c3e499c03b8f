"""Commands that change what a running campaign does."""
