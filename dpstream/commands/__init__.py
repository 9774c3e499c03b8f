"""Every command of the command line, one file per group."""
