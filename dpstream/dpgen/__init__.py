"""Import of DP-GEN's inputs: `param.json` and `machine.json` become a campaign, and an existing
run can be continued.

`keys.py` lists what every key of DP-GEN 0.14 becomes. `param.py` does the conversion, with one
module each for training, stages, templates and labels.
"""
