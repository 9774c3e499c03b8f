"""Starts workers on demand: how many each pool wants, and the engines that run them.

`plan.py` computes the launches of one turn from the demand (tasks by queue) and from what stands
(launches by pool). `reconciler.py` lists, plans and launches in a thread of its own, with what
`memory.py` and `spending.py` keep from turn to turn. `pools.py` is the fleet file. The fleet
engines are in `engines`.
"""
