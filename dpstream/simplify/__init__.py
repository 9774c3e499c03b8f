"""`dpstream simplify` reduces a dataset to the frames that a committee needs."""
