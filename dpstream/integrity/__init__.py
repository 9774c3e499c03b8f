"""Whether everything that a campaign has stored is still what was written, and its repair."""
