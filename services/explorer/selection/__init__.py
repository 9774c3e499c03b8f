"""Selects the frames to label: geometry filters, batch selection, reservoir and audit draw."""
