"""Finds files and reads their structures and labels.

`patterns` resolves what a spec names; `recognise` tells formats apart by content; the other modules
each read one family of formats.
"""
