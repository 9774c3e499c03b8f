"""Models, dataset and report of a campaign, written to a folder."""
