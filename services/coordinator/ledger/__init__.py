"""The ledger of a campaign and the snapshots of its state."""
