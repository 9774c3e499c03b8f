"""DP-GEN's inputs and folders: `param.json` and `machine.json` read into a campaign, a run
continued where DP-GEN left it, a campaign written out in DP-GEN's layout.

`keys.py` says of every key of DP-GEN 0.14 what becomes of it; `param.py` is where it is done.
"""
