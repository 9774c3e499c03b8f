"""Starts workers on demand: how many each pool wants, and the engines that run them.

`plan.py` computes the launches of one turn from the demand (tasks by queue) and from what stands
(launches by pool). `reconciler.py` lists, plans and launches in a thread of its own, with what
`memory.py` and `spending.py` keep from turn to turn. `pools.py` is the fleet file. The fleet
engines, by name in `engines.py`, are `process.py`, `schedulers` (batch systems), `aws_batch.py` and
`kubernetes.py`; the last one creates Jobs (`worker_job.py`), or leaves that to KEDA (`keda.py`),
and reads the state of their pods (`worker_pods.py`).
"""
