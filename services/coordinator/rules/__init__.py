"""The rules of the loop, each a small pure function on a `Turn`; `policy.py` orders them."""
