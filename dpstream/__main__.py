"""`python -m dpstream` runs the same command as `dpstream`."""

from dpstream.cli import main

main()
