"""The ledger of a campaign: the record that its state can be rebuilt from at any time.

`ledger.py` writes and reads segments, `snapshots.py` keeps the state now and then so that opening a
long ledger stays fast, and `submission.py` reads the spec and the event that begin a campaign.
"""
