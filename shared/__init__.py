"""What every service shares: the vocabulary, the ports, and the worker that runs between them."""
