"""Which candidates are labelled."""
