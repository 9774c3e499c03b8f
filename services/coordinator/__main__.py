"""`python -m dpstream.services.coordinator`: the coordinator as a process.

Exit status: 0 stopped on request, 2 bad settings, 3 a newer coordinator has taken over.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

from dpstream.services.coordinator.fleet.reconciler import Reconciler
from dpstream.services.coordinator.garbage import collect_rarely
from dpstream.services.coordinator.http.api import make_app
from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.http.server import serving
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.settings import CoordinatorSettings
from dpstream.shared.connect import connect
from dpstream.shared.errors import DpstreamError, Fenced
from dpstream.shared.logs import configure, logger, redacted
from dpstream.shared.runtime.retry import retry_outages
from dpstream.shared.runtime.signals import asked_to_stop
from dpstream.shared.settings import misspelt_variables, read_settings, secrets_in, variables

log = logger()

BAD_INPUT, OVERTAKEN = 2, 3
REMEDY = "run only one coordinator; stop the other before restarting this one"


def main(arguments: list[str] | None = None) -> int:
    _parser().parse_args(arguments)
    try:
        settings = read_settings(CoordinatorSettings)
        secrets = secrets_in(settings)
        configure(settings.log_level, settings.log_format, secrets, service="coordinator")
        with asked_to_stop() as stopping:
            serve(settings, stopping)
    except Fenced as error:
        return _ended(f"stopped: {error}; {REMEDY}", OVERTAKEN)
    except DpstreamError as error:
        return _ended(str(error), BAD_INPUT)
    return 0


def serve(settings: CoordinatorSettings, stopping: threading.Event) -> None:
    """Serves all campaigns until `stopping` is set. Raises `Fenced` if a newer coordinator has
    taken over, `Refused` if broker or store refuse the credentials, `SpecError` if the API cannot
    listen on its address."""
    for variable, suggestion in misspelt_variables(CoordinatorSettings):
        log.warning("unknown variable ignored", variable=variable, did_you_mean=suggestion)
    connected = connect(settings, stopping)
    if connected is None:
        return
    bus, store = connected
    with closing(bus):
        coordinator = Coordinator(
            bus, store, settings.lease_seconds, settings.reissue_after, settings.patience
        )
        collect_rarely()
        with _fleet(coordinator, settings), _api(coordinator, settings):
            retry_outages(coordinator.open_all, stopping)
            log.info("ready", campaigns=len(coordinator.open_campaigns))
            coordinator.run(stopping)
    log.info("stopped")


@contextmanager
def _fleet(coordinator: Coordinator, settings: CoordinatorSettings) -> Iterator[None]:
    """Starts workers on demand in a thread, if there is a fleet file. Raises SpecError if it is
    invalid. Workers continue when the coordinator ends."""
    if settings.fleet is None:
        yield
        return
    reconciler = Reconciler(
        settings.fleet,
        coordinator.store,
        processes=coordinator.processes,
        labels=lambda: coordinator.computed_labels,
    )
    reconciler.start()
    coordinator.on_demand = reconciler.post
    coordinator.fleet_status = lambda: reconciler.status
    reconciler.on_wanted = partial(setattr, coordinator, "wanted")
    ended = threading.Event()
    thread = threading.Thread(target=reconciler.run, args=(ended,), name="fleet", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def _api(coordinator: Coordinator, settings: CoordinatorSettings) -> Iterator[None]:
    if not settings.http_port:
        yield
        return
    read_access = ReadAccess(coordinator)
    app = make_app(read_access, CoordinatorMetrics(read_access), settings.api_token)
    with serving(app, settings.http_host, settings.http_port) as (host, port):
        log.info("serving", host=host, port=port)
        yield


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name}\n      {text}" for name, text in variables(CoordinatorSettings))
    return argparse.ArgumentParser(
        prog="python -m dpstream.services.coordinator",
        description="Coordinates all campaigns of a store and serves the API. Run one at a time: "
        "a second one takes over, and the first stops with exit status 3.",
        epilog=f"environment, [default] in brackets:\n{lines}\n\n"
        "exit status: 0 after SIGTERM or SIGINT, 2 for invalid settings, 3 if a newer coordinator "
        "took over\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _ended(text: str, status: int) -> int:
    print(f"coordinator: {redacted(' '.join(text.split()))}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
