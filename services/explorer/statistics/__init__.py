"""Error estimates and trust-level calibration from labelled frames."""
