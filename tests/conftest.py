"""Settings of the whole suite."""

from hypothesis import settings

# The same examples on every machine, and no verdict that depends on how busy it is.
settings.register_profile("dpstream", derandomize=True, deadline=None)
settings.load_profile("dpstream")

pytest_plugins = ["tests.rabbit_server", "tests.s3_server", "tests.least_privilege"]
