"""`python -m dpstream`."""

from dpstream.cli import main

main()
