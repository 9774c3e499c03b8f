"""CP2K: the code, the user's template, and what a run prints."""
