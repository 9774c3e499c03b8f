"""Settings of the whole suite."""

import signal

from hypothesis import settings

from tests.amounts import SOAK

# A suite started in the background by a shell inherits a silenced Ctrl-C, and so would the commands
# whose answer to Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine, and no verdict that depends on how busy it is.
settings.register_profile(
    "dpstream", derandomize=True, deadline=None, max_examples=100 if SOAK else 25
)
settings.load_profile("dpstream")

pytest_plugins = ["tests.rabbit_server", "tests.s3_server", "tests.least_privilege"]
