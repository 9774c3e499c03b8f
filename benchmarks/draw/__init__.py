"""Which frames of a pool are labelled, and how a training sees them."""
