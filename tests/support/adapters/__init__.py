"""Buses and stores that fail or record, and what tests read from them."""
