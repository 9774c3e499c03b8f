"""How many of a folder's DP-GEN files can be imported, and why are the others refused?"""
