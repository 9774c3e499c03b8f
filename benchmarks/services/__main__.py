"""`python -m benchmarks.services NAME…|all [--full] [--no-fsync] [--workdir DIR]`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.services import fresh_label, idle, latency, ledger, throughput
from benchmarks.services.figures import Figure, show
from benchmarks.services.site import Servers, servers
from dpstream.shared.logs import configure


@dataclass(frozen=True)
class Size:
    """Sizes of the benchmarks. `trajectories`: per condition; `crews`: numbers of workers."""

    idle: int
    bundles: tuple[int, ...]
    trajectories: int
    events: int
    tasks: int
    crews: tuple[int, ...]
    fresh: int
    ledger: tuple[int, ...]


TINY = Size(8, (5,), 2, 3, 40, (1,), 1, (500,))
USUAL = Size(100, (1, 5), 20, 200, 10_000, (2,), 15, (10_000, 100_000))
FULL = Size(300, (1, 5), 20, 1000, 10_000, (1, 2, 4), 30, (10_000, 100_000, 1_000_000))

BENCHMARKS: Mapping[str, Callable[[Servers, Size], Iterable[Figure]]] = {
    "idle": lambda on, size: idle.measure(on, size.idle, size.bundles),
    "latency": lambda on, size: latency.measure(on, size.trajectories, size.events),
    "throughput": lambda on, size: throughput.measure(on, size.tasks, size.crews),
    "fresh-label": lambda on, size: fresh_label.measure(on, size.fresh),
    "ledger": lambda on, size: ledger.measure(on, size.ledger),
}


def main() -> None:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that child processes are ended
    names = list(BENCHMARKS) if "all" in arguments.names else arguments.names
    configure("error")
    with tempfile.TemporaryDirectory(dir=arguments.workdir) as folder:
        for name in names:
            run(name, FULL if arguments.full else USUAL, Path(folder) / name, arguments.fsync)


def run(name: str, size: Size, folder: Path, fsync: bool) -> None:
    """Runs one benchmark on fresh servers and prints its table."""
    durable = "every PUT synced to the disk" if fsync else "PUTs not synced"
    title, figures = f"{name}: RabbitMQ (quorum queues), SeaweedFS ({durable})", list[Figure]()
    try:
        with servers(folder, fsync) as on:
            for figure in BENCHMARKS[name](on, size):
                figures.append(figure)
    finally:  # prints what was measured, even after an interrupt
        show(title, figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.services", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*BENCHMARKS, "all"], metavar="NAME")
    parser.add_argument(
        "--full",
        action="store_true",
        help="larger sizes: 1,000,000 events; 1 and 4 workers as well",
    )
    parser.add_argument(
        "--no-fsync", dest="fsync", action="store_false", help="do not sync PUTs to the disk"
    )
    parser.add_argument(
        "--workdir", type=Path, help="folder for the servers' data; default: a temporary folder"
    )
    return parser


if __name__ == "__main__":
    main()
