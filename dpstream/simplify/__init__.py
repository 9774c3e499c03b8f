"""`dpstream simplify`: the part of a dataset that a committee needs."""
