"""Commands that show what a campaign has done, and write its results."""
