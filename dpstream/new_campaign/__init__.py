"""`dpstream new`: the folder of a new campaign.

`short` writes a spec for given structures, `full` one with every key; `labels` chooses settings of
a labeling code, `elements` knows the crystals of the elements.
"""
