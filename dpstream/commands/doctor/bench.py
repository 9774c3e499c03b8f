"""`dpstream bench`: measures what this machine can do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dpstream.commands.options import SpecFile
from dpstream.dpgen.load import load_campaign
from dpstream.inputs.gather import gather
from dpstream.running.bench_train import Bench
from dpstream.shared.errors import SpecError, errors_at
from dpstream.shared.files import write_whole
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.spec import expand_material
from dpstream.terminal.console import console, print_line
from dpstream.terminal.training_speed import (
    TrainingBenchmark,
    estimate,
    keep,
    machine,
    settings_of,
    speed_table,
)

bench = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@bench.callback()
def benches() -> None:
    """Measure the speed of this machine."""


@bench.command("train")
def bench_train(
    spec: SpecFile,
    seconds: Annotated[
        float, typer.Option(min=1, metavar="S", help="Approximate duration of the measurement.")
    ] = 60.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to FILE.")
    ] = None,
) -> None:
    """Find the fastest backend, device and number of trainings at once for a spec.

    Trains the spec's models for a few seconds each, with every installed backend of DeePMD-kit, on
    the CPU and on the GPU that DPSTREAM_DEVICE chooses (by default the first), 1, 2, 4, … at once,
    on structures of the spec with random labels. Prints the atoms of a batch, the time of a step,
    the steps per second of all trainings at once, the times to start a training and to freeze,
    compress and measure its model, and how long the first committee takes. The figures are kept in
    the user's cache folder, where dpstream validate finds them.

    Each backend needs some seconds to start: with more than one, allow two minutes.

    Example: dpstream bench train campaign.yaml
    """
    loaded = expand_material(load_campaign(spec, None))
    with errors_at(str(spec), SpecError):
        gathered = gather(loaded, spec.parent, trusting=True)
    with private_folder(None) as scratch, console.status("") as status:
        job = Bench(loaded, gathered, scratch, seconds, status.update)
        with errors_at(str(spec), SpecError):
            speeds = job.run()
    measured = TrainingBenchmark(
        date=time.strftime("%Y-%m-%d"), machine=machine(), speeds=tuple(speeds)
    )
    if json_file is not None:
        write_whole(json_file, measured.model_dump_json(indent=1) + "\n")
    best = measured.best(loaded, gathered)
    assert best is not None
    console.print(speed_table(loaded, gathered, measured))
    for what, why in job.failures.items():
        print_line(console, f"{what}: {why}")
    print_line(console, f"fastest: {estimate(loaded, gathered, best)}")
    print_line(console, f"set {settings_of(best)}")
    keep(loaded, gathered, measured)
