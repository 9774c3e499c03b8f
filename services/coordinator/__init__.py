"""The coordinator: decides what every campaign does next, and records it in the ledger."""
