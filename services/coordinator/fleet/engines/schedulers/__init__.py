"""Workers as jobs of batch systems, through the commands that their users type.

`batch.py` is the fleet engine; what a batch system does in its own way is a `Scheduler`
(`scheduler.py`), one per module. `table.py` lists them by name.
"""
