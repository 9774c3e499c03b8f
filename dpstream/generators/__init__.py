"""The client for structure generators, and a folder that is watched."""
