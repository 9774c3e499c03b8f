"""How each message changes the state; `evolve.py` has the table."""
