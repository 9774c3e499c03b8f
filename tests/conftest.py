"""Settings of the whole suite."""

import gc
import os
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from dpstream.shared.runtime.child_process import PINNED, QUICK
from tests.support.soak import SOAK

# Everything that is collected stays to the end: looking for garbage in it takes half of the
# collection's time, in each worker.
gc.disable()

# As in a worker's engines: with several threads the same sum may have other last digits.
for name in PINNED:
    os.environ.setdefault(name, "1")
os.environ |= QUICK

# Engines and programs of tests read the suite's modules, and read and write its temporary folders.
os.environ.setdefault("DPSTREAM_CONFINE_READ", str(Path(__file__).parent))
os.environ.setdefault("DPSTREAM_CONFINE_WRITE", tempfile.gettempdir())

# A suite started in the background by a shell inherits a silenced Ctrl-C, and so would the commands
# whose answer to Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine, and no verdict that depends on how busy it is.
settings.register_profile(
    "dpstream", derandomize=True, deadline=None, max_examples=100 if SOAK else 25
)
settings.load_profile("dpstream")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage from here on, but only in what tests make."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests marked `soak` to `make soak`."""
    for item in items:
        if item.get_closest_marker("soak") and not SOAK:
            item.add_marker(pytest.mark.skip(reason="runs in `make soak`"))


pytest_plugins = [
    "tests.support.programs.code_settings",
    "tests.support.campaigns.coordinator",
    "tests.support.log_lines",
    "tests.support.workers.one_parser",
    "tests.support.workers.worker",
    "tests.support.servers.rabbit_server",
    "tests.support.servers.s3_server",
    "tests.support.servers.batch_server",
    "tests.support.servers.grid_engine_server",
    "tests.support.servers.slurm_server",
    "tests.support.servers.kube_namespace",
    "tests.support.deployments.kube_deployment",
    "tests.support.deployments.least_privilege",
]
