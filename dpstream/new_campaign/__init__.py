"""`dpstream new`: the folder of a new campaign.

`short` writes a spec for given structures, `full` one with every key, `successor` one that begins
with the labels of an existing campaign; `labels` chooses settings of a labeling code, `elements`
knows the crystals of the elements.
"""
