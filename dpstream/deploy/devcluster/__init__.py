"""Real servers on this machine for development: private, loopback only, one folder each."""
